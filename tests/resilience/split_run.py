"""A whole run of the first phase on two ranks, copied and split (FSDP2), each continued by one process:
`python -m tests.resilience.split_run FOLDER`. Prints JSON; for test_scale.
"""

import json
import os
import sys
from pathlib import Path

from safetensors.torch import load_file

from rl.training import train_teacher_rl
from rl.training.checkpoint import open_checkpoint
from tests.resilience.cases import Case
from tests.resilience.harness import start
from tests.training import teacher_runs

LORA = "model.lora.mode=on"
PICTURES = ("training.video_save_every=4", "training.sample_save_every=4")


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = folder / "tokenizer.safetensors"
    teacher_runs.make_tokenizer(tokenizer)
    case = Case("teacher", train_teacher_rl.main, lambda s, p: [])
    settings = ("training.save_every=4", "training.schedule_episodes=8", "training.num_threads=1", *PICTURES, LORA)
    found: dict[str, object] = {}
    for kind in ("copied", "split"):
        run = folder / kind
        if kind == "split":
            os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        argv = teacher_runs.flags(tokenizer, run, 4, *settings)
        outcome = start(case, argv, 2, folder)
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        assert outcome.done, outcome.output
        saved = open_checkpoint(run)
        model = saved.read("model.pt")
        assert saved.adapter_dir is not None
        adapter = load_file(saved.adapter_dir / "adapter_model.safetensors")
        found[kind] = {
            "types": sorted({type(v).__name__ for v in model.values()}),
            "pictures": sorted(p.name for p in [*run.glob("samples/*"), *run.glob("videos/*")]),
            "adapter": {k: list(v.shape) for k, v in adapter.items()},
            "sum": sum(float(v.double().abs().sum()) for v in model.values()),
        }
        outcome = start(case, [*teacher_runs.flags(tokenizer, run, 8, *settings), "--auto_resume"], 1, folder)
        assert outcome.done, outcome.output
        lines = (run / "episode_metrics.jsonl").read_text().splitlines()
        found[kind]["losses"] = [json.loads(line)["teacher/loss"] for line in lines]  # type: ignore[index]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
