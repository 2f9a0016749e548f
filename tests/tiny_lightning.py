"""The smallest module and data with everything that a run looks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader


@dataclass
class Width:
    features: int = 3

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"features must be at least 1, got {self.features}")


class TinyNet(nn.Linear):
    def save_pretrained(self, folder: Path, **_: Any) -> None:
        torch.save(self.state_dict(), Path(folder) / "weights.pt")


class TinyModule(LightningModule):
    def __init__(
        self,
        vocab_size: int,
        width: Width | None = None,
        beta: float = 0.5,
        learning_rate: NonNegativeFloat = 0.1,
        init_from: str | None = None,
        nan_at_step: int | None = None,
        grad_nan_at_step: int | None = None,
        interrupt_at_step: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.vocab_size = vocab_size
        self.beta = beta
        self.model = TinyNet((width or Width()).features, 1)
        if init_from is not None:
            self.model.load_state_dict(torch.load(Path(init_from) / "weights.pt"))
        self.sample_rows: list[dict[str, Any]] = []
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.model(batch["x"]).square().mean() + 0.1 * torch.rand(())
        if self.global_step == self.hparams.interrupt_at_step:
            raise KeyboardInterrupt
        if self.global_step == self.hparams.nan_at_step:
            loss = loss * float("nan")
        if self.global_step == self.hparams.grad_nan_at_step:
            # finite, and its gradient is not
            loss = loss + (self.model.weight.sum() * 0).sqrt()
        self.log("train/loss_nats", loss, prog_bar=True, on_step=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss = self.model(batch["x"]).square().mean()
        self.log("val/loss_nats", loss, sync_dist=True)
        self.sample_rows = [{"question": "2 + 2?", "prediction": f"{float(loss):.3f}"}]

    def summary_rows(self) -> list[tuple[str, str]]:
        return [("a row of the module", "42 units")]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": list(self.parameters()), "name": "dense"}]
        return torch.optim.SGD(groups, lr=self.hparams.learning_rate, momentum=0.9)


@dataclass(frozen=True)
class TinyTokenizerSettings:
    path: str = "train"


class TinyTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / "tokenizer.json").write_text("{}")


class TinyData(LightningDataModule):
    def __init__(
        self,
        rows: int = 16,
        batch_size: int = 2,
        file: str | None = None,
        tokenizer: TinyTokenizerSettings = TinyTokenizerSettings(),
    ) -> None:
        super().__init__()
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"data file {file} does not exist")
        self.rows, self.batch_size = rows, batch_size
        self.tokenizer_settings = tokenizer
        self.tokenizer = TinyTokenizer()
        self.source_names = ["text", "facts"]

    @property
    def vocab_size(self) -> int:
        return 17

    def fingerprint(self) -> str:
        return f"rows-{self.rows}"

    def train_dataloader(self) -> DataLoader:
        return self._loader()

    def val_dataloader(self) -> DataLoader:
        return self._loader()

    def _loader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.rows, 3, generator=generator)
        rows = [{"x": x[i], "source_ids": torch.tensor(i % 2)} for i in range(self.rows)]
        return DataLoader(rows, batch_size=self.batch_size)


class BrokenLogger(CSVLogger):
    def __init__(self, port: int) -> None:
        raise ValueError(f"port {port} is taken")
