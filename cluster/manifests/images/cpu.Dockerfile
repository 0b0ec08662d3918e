# Herd on CPUs, for small models and for trying a cluster out. From the root of the repository:
#   docker build -f cpu.Dockerfile -t herd-batch:0.1.0-cpu .
FROM python:3.11.13-slim-bookworm
# KubeRay asks a node how it is with wget; vLLM compiles small kernels when it starts
RUN apt-get update && apt-get install -y --no-install-recommends bash g++ libgomp1 libnuma1 rsync wget && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/cpu.txt requirements/cpu.txt
# every version is pinned with its digest, so nothing is resolved here
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/cpu.txt
COPY pyproject.toml README.md ./
COPY pipeline pipeline
COPY cluster cluster
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
RUN useradd --create-home --uid 10001 herd && install -d -o herd -g herd /cache
# a number: Kubernetes cannot tell from a name that a user is not root
USER 10001:10001
WORKDIR /home/herd
ENV HERD_CACHE=/cache/herd HF_HOME=/cache/huggingface RAY_USAGE_STATS_ENABLED=0 PATH=/home/herd/.local/bin:$PATH
CMD ["herd", "--help"]
