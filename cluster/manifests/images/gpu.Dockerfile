# Herd on GPUs: vLLM's own image with Ray and Herd added. From the root of the repository:
#   docker build -f gpu.Dockerfile -t herd-batch:0.1.0-gpu .
FROM python:3.12.11-slim-bookworm AS wheel
WORKDIR /src
RUN pip install --no-cache-dir build==1.6.1 hatchling==1.33.0
COPY pyproject.toml README.md ./
COPY pipeline pipeline
COPY cluster cluster
COPY jobs jobs
RUN python -m build --wheel --no-isolation --outdir /dist

FROM vllm/vllm-openai:v0.32.0
# KubeRay asks a node how it is with wget
RUN apt-get update && apt-get install -y --no-install-recommends bash wget rsync && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN uv pip install --system --no-cache "ray[data,serve]==2.60.0" /dist/*.whl && rm -rf /dist
RUN useradd --create-home --uid 10001 herd && install -d -o herd -g herd /cache
# a number: Kubernetes cannot tell from a name that a user is not root
USER 10001:10001
WORKDIR /home/herd
ENV HERD_CACHE=/cache/herd HF_HOME=/cache/huggingface RAY_USAGE_STATS_ENABLED=0 PATH=/home/herd/.local/bin:$PATH
ENTRYPOINT []
CMD ["herd", "--help"]
