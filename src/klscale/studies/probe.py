"""What torch and other compiled packages say of themselves, as JSON: `python -m klscale.studies.probe`.

A process of its own, for `klscale doctor`: a package that is broken may end the process that imports it.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def probe(modules: list[str]) -> dict[str, Any]:
    """Why each module cannot be imported, empty where it can; and the devices that torch has, with bytes of memory."""
    problems = {}
    for module in modules:
        try:
            importlib.import_module(module)
            problems[module] = ""
        except Exception as error:
            problems[module] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    found: dict[str, Any] = {"problems": problems, "devices": [], "threads": None, "cuda": None}
    if not problems.get("torch", "torch is not there"):
        import torch

        found |= {"threads": torch.get_num_threads(), "cuda": torch.version.cuda}
        for n in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(n)
            found["devices"].append([f"cuda:{n}", about.name, about.total_memory])
        if torch.backends.mps.is_available():
            found["devices"].append(["mps", "Apple GPU", None])
    return found


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1:])))
