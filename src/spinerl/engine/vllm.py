"""vLLM samples, our model learns.

The engine lives in the run's own process or is a server that was started by itself; either way it gets the model's
weights in memory before each rollout for which they have changed.  What it samples is scored once by the model: that
gives the entropies, which vLLM does not, and the log-probabilities that ratios are taken against.  vLLM's own
log-probabilities stay next to them (`Rollout.sampler_logprobs`): `spinerl.step` weighs tokens by how the two differ.

    python -m spinerl.engine.vllm MODEL [--port 8000] [ARGUMENT]...     starts a server with what it needs
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file

from spinerl.config import Config, ModelConfig, RolloutConfig
from spinerl.engine.rollouts import padded, rollout_of
from spinerl.engine.sampling import truncation_of
from spinerl.engine.update import score_with_mass
from spinerl.errors import DivergedError, InputError, MissingExtraError, RunError, SpinerlError
from spinerl.lines import one_line
from spinerl.maths import masked_mean
from spinerl.models.adapters import adapted_weights
from spinerl.models.gguf import require_folder
from spinerl.models.loading import LoadedModel, resolve_name, state_of, whole_model
from spinerl.pipes import python_command, python_environment
from spinerl.seeding import seed_of
from spinerl.types import Batch, ImagePrompt, OnTokens, Question, Rollout

__all__ = ["TakesWeights", "VllmSampler", "main", "open_sampler", "require_vllm"]

_EXTENSION = f"{__name__ if __name__ != '__main__' else 'spinerl.engine.vllm'}.TakesWeights"
_AT_ONCE = 64  # questions asked of a server at the same time
_SEEDS = 2**31  # vLLM counts on from a seed, one for each response
# Compiling takes longer than it saves there; and a seeded prompt must not be read in parts, which a CPU's generator of
# random numbers does not go along with.
_ON_CPU: dict[str, Any] = {
    "kv_cache_memory_bytes": 2**30,
    "enforce_eager": True,
    "enable_chunked_prefill": False,
}


class _Request(NamedTuple):
    """One question to the engine: several responses wanted."""

    prompt: tuple[int, ...]
    settings: dict[str, Any]  # vLLM's names, which its engine and its server share


class _Response(NamedTuple):
    tokens: list[int]
    logprobs: list[float]
    finished: bool


class _Side(Protocol):
    """Where vLLM runs."""

    version: str

    def take(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None: ...

    def ask(self, requests: Sequence[_Request], on_tokens: OnTokens) -> list[list[_Response]]: ...

    def rest(self) -> None: ...


def require_vllm() -> None:
    """MissingExtraError without vLLM in this environment; a server has its own."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("rollout.sampler=vllm needs vLLM, and it is not installed: pip install 'spinerl[vllm]'")


def open_sampler(config: Config, loaded: LoadedModel) -> VllmSampler:
    """The engine that `config` describes.

    Raises MissingExtraError without vLLM, InputError for a server that does not answer or was started without what is
    needed, and for a model that vLLM cannot run.
    """
    return VllmSampler(config, _Server(config, loaded) if config.vllm.url else _InProcess(config, loaded))


class VllmSampler:
    """Samples for a model, with its weights as they are; an `spinerl.models.loading.Sampler`."""

    def __init__(self, config: Config, side: _Side) -> None:
        self._config = config
        self._side = side
        self._given: object = None
        self.facts = {"vllm": side.version}

    def respond(
        self,
        loaded: LoadedModel,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        num_responses: int,
        rollout: RolloutConfig,
        seed: tuple[object, ...] | None,
        limits: Sequence[int],
        on_tokens: OnTokens | None,
    ) -> Rollout:
        """As `sample_responses`, or greedy where `seed` is None.  Equal seeds give equal responses of one engine on one
        machine, as far as vLLM's batches do not change rounding; other ones than our own sampler's.

        Raises DivergedError for a model that has diverged, RunError where vLLM's log-probabilities are not the model's
        (`vllm.max_mismatch`).
        """
        state = state_of(loaded.model)
        if state != self._given:
            self._side.take(adapted_weights(loaded.model))
            self._given = state
        common = _settings(loaded, rollout, num_responses, greedy=seed is None)
        requests = [
            _Request(
                prompt,
                common
                | {"max_tokens": limit}
                | ({} if seed is None else {"seed": seed_of(*seed, question.id) % _SEEDS}),
            )
            for question, prompt, limit in zip(questions, prompts, limits, strict=True)
        ]
        answered = self._side.ask(requests, on_tokens or (lambda *_: None))
        self._side.rest()
        responses = [response for group in answered for response in group]
        record = rollout_of(
            questions,
            prompts,
            num_responses,
            [response.tokens for response in responses],
            [response.finished for response in responses],
            loaded.tokenizer,
            loaded.pad_id,
        )
        rows = tuple(prompts[row // num_responses] for row in range(len(record.tokens)))
        batch = Batch(rows, record.tokens, record.mask, 1.0 if seed is None else rollout.temperature)
        truncate = None if seed is None else truncation_of(rollout, loaded)
        logprobs, entropies, log_mass = score_with_mass(loaded, batch, record.mask, self._config.optim, truncate)
        if not logprobs.isfinite().all():
            raise DivergedError("the model's logits are not finite numbers: its weights have diverged")
        texts = loaded.texts([response.tokens for response in responses])
        record = replace(record, logprobs=logprobs.float(), entropies=entropies.float(), texts=texts)
        if truncate is not None:
            record = replace(record, log_mass=log_mass.float())
        if seed is None:
            return record
        sampled = padded([response.logprobs for response in responses], 0.0, torch.float32)
        self._check(record, sampled)
        return replace(record, sampler_logprobs=sampled)

    def _check(self, record: Rollout, sampled: torch.Tensor) -> None:
        """That vLLM sampled from the model that learns.  Its log-probabilities are of the truncated distribution."""
        difference = masked_mean((record.sampled_logprobs - sampled).abs(), record.mask)
        most = self._config.vllm.max_mismatch
        if not difference <= most:
            raise RunError(
                f"vLLM's log-probabilities differ from the model's by {difference:.3f} nats on average (allowed: "
                f"vllm.max_mismatch={most:g}): it does not sample from the weights that learn; try vllm.options="
                "'{enforce_eager: true}', another vLLM version, or rollout.sampler=native"
            )


class TakesWeights:
    """What a vLLM worker can do besides its own (vLLM's `worker_extension_cls`)."""

    model_runner: Any
    reload_weights: Callable[..., None]

    def take_weights(self, source: str | Iterable[tuple[str, torch.Tensor]]) -> int:
        """Replace the model's weights by these, named as in its folder, or by those of a safetensors file.

        Returns how many tensors came.
        """
        count = 0

        def counted() -> Iterator[tuple[str, torch.Tensor]]:
            nonlocal count
            for item in load_file(source).items() if isinstance(source, str) else source:
                count += 1
                yield item

        self.reload_weights(weights_iterator=counted())
        for module in self.model_runner.get_model().modules():
            # An output head that shares the embeddings' weights keeps a packed copy of its own on a CPU, which a
            # reload leaves as it was.
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)
        return count


class _InProcess:
    """An engine in this process (or, over several GPUs, in children of its own)."""

    def __init__(self, config: Config, loaded: LoadedModel) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError(
                "rollout.sampler=vllm needs vLLM, and it is not installed: pip install 'spinerl[vllm]'"
            )
        on_cpu = loaded.device.type == "cpu"
        options: dict[str, Any] = {
            **_source(config),
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "seed": config.seed,
            "max_model_len": _longest(config, loaded),
            "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from, temperature included
            "worker_extension_cls": _EXTENSION,
            "gpu_memory_utilization": config.vllm.memory_frac,
            "enable_sleep_mode": config.vllm.sleep and not on_cpu,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **(_ON_CPU if on_cpu else {}),
            **({} if loaded.vision is None else {"limit_mm_per_prompt": {"image": 16}}),
            **config.vllm.options,
        }
        self._sleeps = bool(options["enable_sleep_mode"])
        self._one_process = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1) == 1
        self._folder = config.vllm.folder
        self._loaded = loaded
        self._asleep = False
        with _quiet(on_cpu, self._one_process):
            self._vllm: Any = importlib.import_module("vllm")
            self.version = str(self._vllm.__version__)
            try:
                self._llm: Any = self._vllm.LLM(**options)
            except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:400]
                given = f" with vllm.options={config.vllm.options}" if config.vllm.options else ""
                raise InputError(f"vLLM cannot run model={config.model.name}{given}: {reason}") from None

    def take(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._wake()
        if self._one_process:
            self._llm.collective_rpc("take_weights", args=(weights,))
        else:
            with _file_of(weights, self._folder) as file:
                self._llm.collective_rpc("take_weights", args=(str(file),))
        self._llm.reset_prefix_cache()
        if self._loaded.vision is not None:  # what an image looked like to the weights before
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()

    def ask(self, requests: Sequence[_Request], on_tokens: OnTokens) -> list[list[_Response]]:
        self._wake()
        prompts = [self._prompt(request.prompt) for request in requests]
        whole = importlib.import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY
        settings = [self._vllm.SamplingParams(**request.settings, output_kind=whole) for request in requests]
        engine = self._llm.llm_engine
        for i, (prompt, setting) in enumerate(zip(prompts, settings, strict=True)):
            engine.add_request(str(i), prompt, setting)
        found: dict[int, list[_Response]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    number = int(output.request_id)
                    _check_prompt(requests[number].prompt, output.prompt_token_ids)
                    found[number] = [_response(one) for one in sorted(output.outputs, key=lambda one: one.index)]
                    on_tokens(sum(len(response.tokens) for response in found[number]), len(found[number]))
        return [found[i] for i in range(len(requests))]

    def rest(self) -> None:
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _prompt(self, prompt: tuple[int, ...]) -> dict[str, Any]:
        if not isinstance(prompt, ImagePrompt):
            return {"prompt_token_ids": list(prompt)}
        assert self._loaded.vision is not None
        pictures = self._loaded.vision.pictures(prompt.shown.images)
        return {"prompt": prompt.shown.text, "multi_modal_data": {"image": pictures}}


def _response(output: Any) -> _Response:
    logprobs = [figures[token].logprob for token, figures in zip(output.token_ids, output.logprobs, strict=True)]
    return _Response(list(output.token_ids), logprobs, output.finish_reason == "stop")


class _Server:
    """A vLLM server that was started with `python -m spinerl.engine.vllm`."""

    def __init__(self, config: Config, loaded: LoadedModel) -> None:
        assert config.vllm.url is not None
        if loaded.vision is not None:
            raise InputError(
                "a vLLM server is not shown images here; leave vllm.url out, the engine in the run sees them"
            )
        self._url = config.vllm.url.rstrip("/")
        self._folder = config.vllm.folder
        models = self._call("/v1/models", None, InputError)
        self._model = models["data"][0]["id"]
        self.version = str(self._call("/version", None)["version"])

    def take(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        with _file_of(weights, self._folder) as file:
            self._call("/collective_rpc", {"method": "take_weights", "args": [str(file)]})
        self._call("/reset_prefix_cache", {})

    def ask(self, requests: Sequence[_Request], on_tokens: OnTokens) -> list[list[_Response]]:
        def one(request: _Request) -> list[_Response]:
            body = {"model": self._model, "prompt": list(request.prompt), "return_token_ids": True, **request.settings}
            choices = self._call("/v1/completions", body)["choices"]
            return [
                _Response(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")
                for choice in sorted(choices, key=lambda choice: choice["index"])
            ]

        found = []
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            for responses in pool.map(one, requests):
                found.append(responses)
                on_tokens(sum(len(response.tokens) for response in responses), len(responses))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return found

    def rest(self) -> None:
        """A server has memory of its own."""

    def _call(self, path: str, body: dict[str, Any] | None, silent: type[SpinerlError] = RunError) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            reason = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RunError(
                f"vllm.url={self._url}{path} answered {error.code}: {reason}; start the server with "
                "`python -m spinerl.engine.vllm MODEL`"
            ) from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise silent(
                f"vllm.url={self._url} does not answer ({error}); start a server: `python -m spinerl.engine.vllm MODEL`"
            ) from None
        return json.loads(text) if text else None


def _settings(loaded: LoadedModel, rollout: RolloutConfig, num_responses: int, *, greedy: bool) -> dict[str, Any]:
    """vLLM's sampling parameters, all that a model's own generation settings might otherwise set."""
    settings: dict[str, Any] = {
        "n": num_responses,
        "temperature": 0.0 if greedy else rollout.temperature,
        "top_p": 1.0 if greedy else rollout.top_p,
        "top_k": 0 if greedy else rollout.top_k,
        "min_p": 0.0 if greedy else rollout.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,  # of the sampled token only
        "stop_token_ids": list(loaded.end_ids),
    }
    if rollout.stop or loaded.stop_texts:
        settings |= {"stop": [*rollout.stop, *loaded.stop_texts], "include_stop_str_in_output": True}
    if loaded.vision is not None:  # a model refuses more placeholders than it has images
        settings["logit_bias"] = dict.fromkeys(loaded.vision.placeholder_ids, -100.0)
    return settings


@contextmanager
def _file_of(weights: Iterable[tuple[str, torch.Tensor]], parent: str) -> Iterator[Path]:
    """A safetensors file of the weights, in memory where `parent` is, gone afterwards."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="spinerl-weights-", dir=parent))
    except OSError as error:
        raise InputError(f"vllm.folder={parent}: {error}; give a folder that this machine and the server see") from None
    try:
        folder.chmod(0o755)  # the server may be another user's
        file = folder / "model.safetensors"
        save_file({name: weight.cpu().contiguous() for name, weight in weights}, file)
        file.chmod(0o644)
        yield file
    except OSError as error:
        raise RunError(f"vllm.folder={parent}: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_prompt(prompt: tuple[int, ...], read: Sequence[int] | None) -> None:
    if read is not None and list(prompt) != list(read):
        raise RunError(
            f"vLLM reads a prompt with images as {len(read)} tokens, the model as {len(prompt)}: the versions of their "
            "processors differ; use rollout.sampler=native"
        )


def _source(config: Config) -> dict[str, Any]:
    """Where vLLM finds the model that a configuration names; adapters come with the weights."""
    found: dict[str, Any] = {
        "model": _whole_folder(config.model),
        "trust_remote_code": config.model.trust_remote_code,
        "load_format": "safetensors",
    }
    if config.model.revision:
        found["revision"] = config.model.revision
    return found


def _whole_folder(config: ModelConfig) -> str:
    """The folder or hub name of a model, or of the model its adapters belong to.  InputError for a GGUF file."""
    folder = resolve_name(whole_model(config)[0].name)
    require_folder(folder, config.name, "vLLM")
    return folder


def _longest(config: Config, loaded: LoadedModel) -> int:
    """Tokens of the longest prompt and response that may come."""
    wanted = config.prompt.max_tokens + config.rollout.max_new_tokens
    return wanted if loaded.context is None else min(wanted, loaded.context)


@contextmanager
def _quiet(on_cpu: bool, one_process: bool) -> Iterator[None]:
    """vLLM starts here: in this process if it can, without a word unless asked, and not choosing our threads."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if one_process:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    set_threads = torch.set_num_threads  # vLLM's CPU worker puts one in its place that does nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the peer's, about its own imports
            yield
    finally:
        torch.set_num_threads = set_threads


def main(args: Sequence[str] | None = None) -> None:
    """Become a vLLM server whose weights a run can replace: `python -m spinerl.engine.vllm MODEL [ARGUMENT]...`.

    Whoever reaches it can replace them, so it listens to this machine only, unless `--host` is among the arguments.
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        if not args or args[0].startswith("-"):
            raise InputError("which model?  python -m spinerl.engine.vllm MODEL [vLLM's arguments]")
        require_vllm()
        model = _whole_folder(ModelConfig(name=args[0]))
    except SpinerlError as error:
        print(f"spinerl: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the address at which workers receive weights
    fixed = ["--host", "127.0.0.1", "--logprobs-mode", "processed_logprobs", "--worker-extension-cls", _EXTENSION]
    fixed += ["--load-format", "safetensors"]  # pickles can run code
    if not torch.cuda.is_available():
        on_cpu = {name.replace("_", "-"): value for name, value in _ON_CPU.items()} | {"dtype": "float32"}
        for name, value in on_cpu.items():
            fixed += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    server = [*python_command("vllm.entrypoints.openai.api_server"), "--model", model, *fixed, *args[1:]]
    os.execve(sys.executable, server, python_environment())


if __name__ == "__main__":
    main()
