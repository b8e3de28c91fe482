"""The frozen base by name: of the hub, its cache, a folder, or a mirror on S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from cmoe.modeling.base import UnsupportedModelError
from cmoe.modeling.quantized import quantize, require_bitsandbytes
from cmoe.modeling.settings import FLASH, Attention, ModelConfig, Quantization
from cmoe.modeling.sources import MissingModelError as MissingModelError
from cmoe.modeling.sources import fetched, is_mirror, lacking_weights, local_base

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_base(
    name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    pad: bool = False,
    quantization: Quantization | None = None,
    attention: Attention | None = None,
) -> tuple[PreTrainedModel, Any]:
    """Load a vision-language model and its processor by hub name, local path or S3 URL.

    Without a network, or with `HF_HUB_OFFLINE=1`, a hub name is taken from the hub's cache. Code
    from the hub is never run.

    Weights in the files' own dtype stay in the files' pages, which processes of a machine share. On
    another device than the CPU they go there from the files, one by one.

    Args:
        name: Of the base.
        revision: Of a hub name.
        dtype: Of the weights; `auto` keeps theirs.
        device: Where they go.
        pad: Make the processor pad pictures to a square first, whatever it does by itself.
        quantization: Of the decoder's linear maps.
        attention: How it is computed; None leaves that to transformers.

    Raises:
        MissingModelError: Nothing usable lies at `name`.
        UnsupportedModelError: It is of a kind that transformers doesn't know, can't pad, is
            quantised already, or doesn't have this attention here.
    """
    from transformers import AutoModelForImageTextToText

    device = torch.device(device)
    require_unquantized(name, load_config(name, revision=revision))
    require_attention(attention, gpu=device.type != "cpu")
    straight = quantization is None and device.type != "cpu"
    with _found(name, revision, weights=True) as place, _attending(name, attention):
        model = AutoModelForImageTextToText.from_pretrained(
            place,
            revision=revision,
            dtype=dtype,
            device_map={"": device} if straight else None,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
        )
    processor = load_processor(name, revision=revision, pad=pad)
    if quantization is not None:
        quantize(model, quantization, device)
    return model.eval(), processor


def require_unquantized(name: str, config: PretrainedConfig) -> None:
    """Refuse a base whose files are quantised: nobody knows the digest that its weights had.

    Raises:
        UnsupportedModelError: Names how.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    raise UnsupportedModelError(
        f"{name}: its weights are quantised already ({getattr(method, 'value', method)}); give the "
        "base that they were made of, and model.quantization nf4 or int8"
    )


def require_attention(attention: Attention | None, *, gpu: bool) -> None:
    """Refuse an attention that this machine can't compute.

    Args:
        attention: Its name.
        gpu: Whether it is to be computed on a GPU.

    Raises:
        UnsupportedModelError: Says what would be right.
    """
    if attention != FLASH:
        return
    if not gpu:
        raise UnsupportedModelError(
            f"model.attention is {FLASH}, which needs a GPU; null or sdpa works on CPUs, too"
        )
    # Without the package transformers would fetch a kernel from the hub.
    if find_spec("flash_attn") is None:
        raise UnsupportedModelError(
            f"model.attention is {FLASH}, and flash-attn isn't installed; `pip install flash-attn` "
            "installs it, or null leaves attention to torch"
        )


@contextmanager
def _attending(name: str, attention: Attention | None) -> Iterator[None]:
    """Say which attention a base doesn't have where transformers refuses it."""
    try:
        yield
    except (ImportError, ValueError) as error:
        if attention is None:
            raise
        raise UnsupportedModelError(
            f"model.attention is {attention}, and {name} can't have it: {_first_line(error)}"
        ) from None


def load_processor(name: str, *, revision: str | None = None, pad: bool = False) -> Any:
    """A base's processor alone; arguments and errors as in `load_base`.

    Pictures are prepared with Pillow, with and without torchvision: the two differ by up to a grey
    level, and answers are to be the same on every machine.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    code = {"revision": revision, "trust_remote_code": False}
    try:
        with _found(name, revision) as place:
            processor = AutoProcessor.from_pretrained(place, **code)
            # `AutoProcessor` hands `backend` on to parts that don't know it.
            processor.image_processor = AutoImageProcessor.from_pretrained(
                place, backend="pil", **code
            )
    except ImportError as error:
        raise UnsupportedModelError(f"{name}: {_first_line(error)}") from None
    if pad:
        processor.image_processor = _padding(processor.image_processor)
    return processor


def _padding(image_processor: Any) -> Any:
    """The same image processor, padding to a square: LLaVA's own does, and takes CLIP's settings.

    Raises:
        UnsupportedModelError: It is another kind, which sees pictures in a way of its own.
    """
    from transformers import LlavaImageProcessorPil

    kind = type(image_processor).__name__
    if not kind.startswith(("Llava", "CLIP")) or kind.startswith("LlavaNext"):
        raise UnsupportedModelError(
            f"model.pad is true, and the base's pictures are prepared by {kind}; only LLaVA's and "
            "CLIP's processors can pad to a square. Set it to false"
        )
    settings = image_processor.to_dict()
    for name in ("image_processor_type", "processor_class"):
        settings.pop(name, None)
    return LlavaImageProcessorPil.from_dict(settings | {"do_pad": True})


def squared(image_processor: Any, image: Image.Image) -> Image.Image:
    """A picture as a processor with `pad` sees it before anything else is done to it.

    Args:
        image_processor: Of `load_processor` with `pad`.
        image: In RGB.
    """
    colour = tuple(int(255 * mean) for mean in image_processor.image_mean)
    channels = np.asarray(image).transpose(2, 0, 1)
    padded = image_processor.pad_to_square(channels, background_color=colour)
    return Image.fromarray(padded.transpose(1, 2, 0))


def load_config(name: str, *, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a base; names and errors as in `load_base`."""
    from transformers import AutoConfig

    try:
        with _found(name, revision) as place:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                place, revision=revision, trust_remote_code=False
            )
            return config
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: {_first_line(error)}") from None


def require_loadable(model: ModelConfig, *, gpu: bool) -> None:
    """Refuse a base that can't be loaded as configured, without its weights.

    Args:
        model: The base.
        gpu: Whether it is to run on GPUs.

    Raises:
        MissingModelError: Nothing usable lies there.
        UnsupportedModelError: As in `load_base`.
    """
    require_unquantized(model.path, load_config(model.path, revision=model.revision))
    if model.quantization is not None:
        require_bitsandbytes(model.quantization)
    require_attention(model.attention, gpu=gpu)
    if model.attention is not None:
        load_shape(model.path, revision=model.revision, attention=model.attention)


def require_base(name: str, *, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a base whose weights are there, too, or can be asked of the hub.

    Raises:
        MissingModelError: A file is missing.
        UnsupportedModelError: As in `load_base`.
    """
    config = load_config(name, revision=revision)
    lacking = lacking_weights(name, revision)
    with _found(name, revision):
        if lacking:
            raise FileNotFoundError(f"{', '.join(lacking)} is missing")
    return config


def fetch_base(name: str, *, revision: str | None = None) -> Path:
    """The folder of a base that is whole on this machine then; errors as of `require_base`."""
    load_config(name, revision=revision)
    with _found(name, revision):
        folder = fetched(name, revision)
    require_base(name, revision=revision)
    return folder


def load_shape(
    name: str, *, revision: str | None = None, attention: Attention | None = None
) -> PreTrainedModel:
    """A base without its weights, on torch's meta device; arguments and errors as in `load_base`.

    Raises:
        UnsupportedModelError: It is no vision-language model.
    """
    from transformers import AutoModelForImageTextToText

    config = load_config(name, revision=revision)
    try:
        with torch.device("meta"), _attending(name, attention):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(
                config, attn_implementation=attention, trust_remote_code=False
            )
    except UnsupportedModelError:
        raise
    except ValueError:
        raise UnsupportedModelError(
            f"{name}: a model of type {config.model_type!r}; one that answers about pictures with "
            "text is needed"
        ) from None
    model.eval()
    return model


@contextmanager
def _found(name: str, revision: str | None, *, weights: bool = False) -> Iterator[str]:
    """What transformers loads for a name. Where it finds nothing, say what was looked for."""
    place = local_base(name, weights=weights)
    try:
        yield place
    except OSError as error:
        # The hub's own errors behind it are many and say less.
        raise MissingModelError(_why_missing(name, revision, error)) from None


def _why_missing(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    folder = Path(name).expanduser()
    if is_mirror(name) or folder.exists():
        held = "no folder" if folder.is_file() else "a folder without a whole model"
        return (
            f"{name} is {held}: config.json, *.safetensors and the processor's files are needed "
            f"({_first_line(error)})"
        )
    causes = [error, *_causes(error)]
    if name.startswith(("/", ".", "~")) or any(isinstance(c, HFValidationError) for c in causes):
        return (
            f"{name}: there is no such folder, and it is no hub name (owner/model) and no mirror "
            "(s3://bucket/prefix)"
        )
    fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    said = next((c for c in causes if isinstance(c, HfHubHTTPError)), None)
    if constants.HF_HUB_OFFLINE:
        hub = "the hub wasn't asked, as HF_HUB_OFFLINE is set"
    elif isinstance(said, GatedRepoError):
        hub = f"the hub wants its terms to be accepted first: {constants.ENDPOINT}/{name}"
    elif said is not None:
        hub = f"the hub at {constants.ENDPOINT} has none to show ({type(said).__name__})"
    else:
        hub = f"the hub at {constants.ENDPOINT} couldn't be reached"
    return (
        f"{name}, revision {revision or 'main'}: neither a folder here nor whole in the cache "
        f"{constants.HF_HUB_CACHE}, and {hub}. Where there is a network, `{fetch}` fetches it into "
        "that cache"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
