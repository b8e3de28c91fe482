"""What the hub says about a model card's front matter, by its documentation.

https://huggingface.co/docs/hub/model-cards and /repositories-licenses; the specification of the
fields is `modelcard.md` of https://github.com/huggingface/hub-docs.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1
lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
"""
LICENSES = set(_LICENSES.split())
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
TASKS = {"image-text-to-text", "visual-question-answering", "text-generation", "image-to-text"}
_REPO = re.compile(r"(?:[\w.-]+/)?[\w.-]{1,96}")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def problems_of(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    match = REGEX_YAML_BLOCK.search(content)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata is no mapping"], []
    return [said for key, value in data.items() for said in _wrong(key, value, data)], []


def _wrong(key: str, value: Any, data: dict[str, Any]) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each for each in values):
        return [f'"{key}" must be a string or a list of strings']
    allowed = {
        "license": lambda v: v in LICENSES,
        "language": _LANGUAGE.fullmatch,
        "base_model": _REPO.fullmatch,
        "datasets": _REPO.fullmatch,
        "base_model_relation": lambda v: v in RELATIONS,
        "pipeline_tag": lambda v: v in TASKS,
    }.get(key, lambda v: True)
    wrong = [f'"{key}" must not be {each!r}' for each in values if not allowed(each)]
    if key == "license" and value == "other" and "license_name" not in data:
        wrong.append('"license_name" is required where "license" is other')
    if key in ("pipeline_tag", "library_name", "base_model_relation") and isinstance(value, list):
        wrong.append(f'"{key}" must be a string')
    if key in ("tags", "metrics", "datasets") and not isinstance(value, list):
        wrong.append(f'"{key}" must be an array')
    return wrong
