"""A server as an oracle: it gets SMILES and answers with numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.background_loop import wait_for
from triptych.objectives.rewards.molecules.batch_answers import SharedAnswers, chosen, read_json
from triptych.objectives.rewards.molecules.component import Failure, MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform
from triptych.objectives.rewards.remote.http_json import HttpConfig, post_json

_shared = SharedAnswers()


class RestService(MoleculeComponent):
    """Posts SMILES to a server and reads a number for each.

        request   {"smiles": ["CCO", "CCN"]}, and the further fields of `request`
        answer    [0.5, null], {"scores": [0.5, null]}, or another form of `batch_answers.read_json`

    A request that fails for good costs its batch, which the search tries again in smaller ones, or
    at which it pauses if the server is down. Several components with the same address and different
    endpoints share each request.

    Args:
        url: Address, such as http://localhost:8000/predict.
        endpoint: Name of the result in the answer; null: the only one.
        http: Time limit of a try, repetitions and key; null: those of `HttpConfig`.
        batch_size: Most molecules of one request.
        smiles_key: Name of the SMILES in the request.
        request: Further fields of the request.
        version: Of the model behind the server, if you know it: a ledger is valid for one only.
        cost_ms: Approximate time per molecule; cheap components are computed first.
        transform: Maps the number to [0, 1]; null: unchanged.
        name: In ledger, logs and tables; null: the endpoint, or `rest_service`.

    Raises:
        ValueError: If the address is none, or `batch_size` is below 1.
    """

    def __init__(
        self,
        url: str,
        endpoint: str | None = None,
        http: HttpConfig | None = None,
        batch_size: int = 64,
        smiles_key: str = "smiles",
        request: dict[str, Any] | None = None,
        version: str | None = None,
        cost_ms: float = 100.0,
        transform: Transform | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(transform, name)
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the url is {url!r}: give one that begins with http:// or https://")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: set it to at least 1")
        self.url, self.endpoint, self.smiles_key = url, endpoint, smiles_key
        self.request, self.version = request, version
        self.batch_size, self.cost_ms = batch_size, cost_ms
        self._http = http or HttpConfig()

    @property
    def default_name(self) -> str:
        """The endpoint, or `rest_service`."""
        return self.endpoint or super().default_name

    def prepare(self) -> None:
        """Look for the key.

        Raises:
            ValueError: If the environment has none under its name.
        """
        self._http.key()

    def identity(self) -> dict[str, Any]:
        """Return what decides scores; not how molecules are batched."""
        return super().identity() | {"batch_size": None, "cost_ms": None}

    def values(self, molecules: Sequence[Mol], smiles: Sequence[str]) -> list[float | Failure]:
        """Ask the server.

        Raises:
            RequestError: If no try succeeded.
            ValueError: If the answer cannot be read.
        """
        source = (self.url, str(self.request))
        found: list[float | Failure | None] = [*_shared.take(source, self.endpoint, smiles)]
        rows = [row for row, value in enumerate(found) if value is None]
        if rows:
            asked = [smiles[row] for row in rows]
            answer = wait_for(self._ask({self.smiles_key: asked} | (self.request or {})))
            try:
                answers = read_json(answer, len(asked))
                own = chosen(answers, self.endpoint)
            except ValueError as error:
                raise ValueError(f"{self.url} answered otherwise than expected: {error}") from error
            _shared.keep(source, self.endpoint, asked, answers)
            for row, value in zip(rows, own, strict=True):
                found[row] = value
        return [value for value in found if value is not None]

    async def _ask(self, body: Mapping[str, Any]) -> Any:
        async with self._http.session() as session:
            return await post_json(session, self.url, body, self._http)
