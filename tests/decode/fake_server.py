"""What of vLLM 0.32's OpenAI-compatible server the remote engine asks, over a tiny model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

MOST_TOKENS = 128


class FakeServer:
    """A model and adapters behind `/v1/completions`; keeps what it was asked."""

    def __init__(self, model: Any, adapters: dict[str, Any] | None = None) -> None:
        self.models = {"tiny": model, **(adapters or {})}
        self.posts: list[dict[str, Any]] = []
        self.faults: list[int] = []
        self.retry_after: str | None = None
        self.key: str | None = None
        self.mode = "raw_logprobs"

    def build_app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def list_models(request: Request) -> Any:
            if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            base = {"id": "tiny", "max_model_len": 128, "parent": None}
            others = [{"id": name, "parent": "tiny"} for name in self.models if name != "tiny"]
            return {"data": [base, *others]}

        @app.post("/v1/completions")
        async def complete(request: Request) -> Any:
            if self.faults:
                headers = {"Retry-After": self.retry_after} if self.retry_after else None
                return JSONResponse({"error": "not now"}, self.faults.pop(0), headers)
            body = await request.json()
            self.posts.append(body)
            if len(body["logprob_token_ids"]) > MOST_TOKENS or body["logprobs"] is None:
                return JSONResponse({"error": "at most 128 tokens"}, 400)
            return {"choices": self.answer(body)[::-1]}  # in any order

        return app

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        assert body["max_tokens"] == 1 and body["return_tokens_as_token_ids"]
        prompts = body["prompt"]
        longest = max(map(len, prompts))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in prompts])
        with torch.inference_mode():
            logits = self.models[body["model"]](padded).logits
        last = logits[torch.arange(len(prompts)), torch.tensor([len(row) - 1 for row in prompts])]
        if self.mode == "processed_logprobs" and body.get("allowed_token_ids"):
            kept = last[:, body["allowed_token_ids"]]
            last = torch.full_like(last, -torch.inf)
            last[:, body["allowed_token_ids"]] = kept
        values = last if self.mode == "raw_logits" else torch.log_softmax(last, dim=1)
        choices = []
        for index, row in enumerate(values):
            tokens = [int(row.argmax()), *body["logprob_token_ids"]]
            said = {f"token_id:{token}": max(float(row[token]), -9999.0) for token in tokens}
            choices.append({"index": index, "logprobs": {"top_logprobs": [said]}})
        return choices


@contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    """A block in which an application answers at a URL."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    (listening,) = server.servers
    port = listening.sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
