"""The one command, greyhound.

Before it: nothing. After it: the program that the first word names, which reads the rest of the command line.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

CACHE = ("demo", "survey", "pack", "info", "verify")
"""Subcommands of the room `cache`, which share one program."""
PROGRAMS = {
    "train": ("greyhound.train", "fine-tune a network on a pack"),
    "eval": ("greyhound.eval", "test a run: accuracy in total and by class"),
    "predict": ("greyhound.predict", "name the class of photographs: a row for each file"),
    "serve": ("greyhound.serve", "show on a page what a network says of a photograph"),
    "explain": ("greyhound.explain", "show where a run's network looks"),
    "compare": ("greyhound.compare", "show runs side by side on one page"),
    "review": ("greyhound.review", "rank the labels that look wrong"),
    "export": ("greyhound.export", "write a run as one file for ONNX Runtime, OpenVINO, OpenCV or timm"),
    "doctor": ("greyhound.pipelines.doctor", "say what this machine has, and what does not fit together"),
    "benchmark": ("greyhound.pipelines.benchmark", "measure the loaders on your own photographs"),
    "demo": ("greyhound.cache", "draw a small data set with planted faults"),
    "survey": ("greyhound.cache", "look at every image once, and make a page to decide on"),
    "pack": ("greyhound.cache", "put a folder of photographs into one file"),
    "info": ("greyhound.cache", "say what is in a pack"),
    "verify": ("greyhound.cache", "check every image of a pack against its checksum"),
}


def main() -> None:
    """Run the program that the command line names; its exit code is ours."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # also these imports end without a traceback
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from greyhound.cache.cli import end_quietly, read_or_exit

    end_quietly()
    from greyhound.cache.options import check_command

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        rows = [f"  {name:<10} {what}" for name, (_, what) in PROGRAMS.items()]
        print("usage: greyhound COMMAND ...", "", *rows, "", sep="\n")
        print("greyhound COMMAND --help says what it takes.")
        sys.exit(0)
    if name == "--version":
        from importlib import metadata

        print(f"greyhound {metadata.version('greyhound')}")
        sys.exit(0)
    read_or_exit(lambda: check_command(name, list(PROGRAMS)))
    sys.argv = ["greyhound", *sys.argv[1 if name in CACHE else 2 :]]
    runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
