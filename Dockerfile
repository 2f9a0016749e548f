# Triptych with its dependencies, for CPUs:
#
#   docker build -t triptych .
#   docker run --rm -v "$PWD":/work triptych fit --config configs/quickstart.yaml
#
# and for NVIDIA GPUs, whose driver supports the CUDA version of torch's wheels on PyPI:
#
#   docker build --build-arg TORCH=cuda -t triptych:cuda .
#   docker run --rm --gpus all -v "$PWD":/work triptych:cuda fit --config configs/quickstart.yaml
#
# Runs and mlflow.db land in the mounted folder, which user 1000 has to be able to write.
# This file has not been built by the project's tests, which have no docker.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu: torch's own index, whose wheels have no CUDA libraries (3 GB less). cuda: PyPI.
ARG TORCH=cpu
# git: a run in a mounted clone records its commit. gcc, g++: torch.compile.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git gcc g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 triptych \
    && mkdir /work && chown triptych /work

WORKDIR /opt/triptych
COPY pyproject.toml constraints.txt ./
# Before the code, so that a change of it downloads nothing anew.
RUN pip install --no-cache-dir -c constraints.txt uv \
    && case "$TORCH" in \
        cpu) index="--index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match" ;; \
        cuda) index="" ;; \
        *) echo "TORCH is '$TORCH': give cpu or cuda" >&2; exit 1 ;; \
    esac \
    && uv pip install --system --no-cache --compile-bytecode $index \
        -c constraints.txt -r pyproject.toml --extra tracking
COPY . .
RUN uv pip install --system --no-cache --no-deps .

USER triptych
WORKDIR /work
ENTRYPOINT ["triptych"]
CMD ["--help"]
