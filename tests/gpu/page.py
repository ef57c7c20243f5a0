"""The page about a GPU, made of a session's figures: `python -m tests.gpu.page figures.json`."""

import json
import sys
from pathlib import Path
from typing import Any


def page(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown: what was measured, on what, and what limits a step."""
    about, times = figures["about"], figures.get("times", {})
    lines = ["## Measured", "", f"On {about.get('device', 'a CPU, in miniature')}, torch {about['torch']}."]
    lines += ["", "```text", about["nvidia_smi"].strip(), "```"] if about.get("nvidia_smi") else []
    steps = {name: row for name, row in times.items() if isinstance(row, dict) and "of_bare" in row}
    lines += ["", "| Step | ms | times Bare | smallest to largest | rounds |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, row in steps.items():
        spread = f"{row['of_bare_low']:.2f} to {row['of_bare_high']:.2f}"
        lines.append(f"| {name} | {row['ms']:.2f} | {row['of_bare']:.2f} | {spread} | {row['rounds']} |")
    lines.append("")
    if reference := times.get("reference"):
        lines.append(
            f"The reference pipeline with {reference['workers']} workers takes {reference['reference_ms']:.1f} ms"
            f" a step of BYOL; ours is {reference['times_faster_fp32']:.2f} times faster in fp32, and"
            f" {reference['times_faster_bf16']:.2f} times in bf16 (n=1)."
        )
    if profiled := times.get("profile"):
        lines += [f"What limits a step of BYOL: {profiled['limit']}."] if "limit" in profiled else []
        lines += ["", "| Operation | ms a step | calls a step |"]
        lines += ["| --- | ---: | ---: |"]
        lines += [f"| `{row['name']}` | {row['ms']:.3f} | {row['calls']:.0f} |" for row in profiled["top"]]
    lines += ["", "| Part | exit code | seconds |", "| --- | ---: | ---: |"]
    for name, part in figures.items():
        if isinstance(part, dict) and "exit_code" in part:
            code = "late" if part["exit_code"] is None else part["exit_code"]
            lines.append(f"| {name} | {code} | {part['seconds']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())), end="")
