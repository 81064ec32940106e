"""Fuzz the parsers with atheris, or try again what once was a crash.

python fuzz/run.py                      every parser for a minute
python fuzz/run.py idx liberty -s 600   two of them for ten minutes each
python fuzz/run.py --list

It prints a line a parser: inputs tried, inputs that reached new code, crashes. Crashes are kept in fuzz/corpus/PARSER,
which tests/test_hostile.py tries again. Needs the extra fuzz: pip install 'torchdfa[fuzz]'.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Megabytes that a parser may take, the interpreter with torch in it included; seconds for one input.
MEMORY, SECONDS = 3000, 20


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one parser in this process until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["torchdfa", "pickle"]):
        sys.path.insert(0, str(HERE))
        import targets

    atheris.Setup([sys.argv[0], *arguments], lambda data: targets.run(name, data))
    atheris.Fuzz()


def start(name: str, seconds: int, crashes: Path) -> tuple[int, int, int, str]:
    """Fuzz one parser in a process of its own; return inputs tried, kept, crashes, and what was printed."""
    crashes.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    with tempfile.TemporaryDirectory() as corpus:
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import targets\n"
        code += f"for i, s in enumerate(targets.TARGETS[{name!r}].seeds()): open({corpus!r} + f'/{{i}}', 'wb').write(s)"
        subprocess.run([sys.executable, "-c", code], check=True)
        options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={SECONDS}", "-max_len=20000"]
        options += ["-print_final_stats=1", f"-artifact_prefix={crashes}/", "-verbosity=0", corpus]
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        kept = len(list(Path(corpus).iterdir()))
    tried = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    new = set(crashes.iterdir()) - before
    if not any(crashes.iterdir()):
        crashes.rmdir()
    if done.returncode and not new:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return int(tried[-1]) if tried else 0, kept, len(new), done.stderr


def main() -> int:
    """Run the command line."""
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parsers", nargs="*", help="Which; all by default.")
    parser.add_argument("-s", "--seconds", type=int, default=60, help="For each.")
    parser.add_argument("--list", action="store_true", help="List the parsers.")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from targets import TARGETS

    if options.list:
        print("\n".join(TARGETS))
        return 0
    if unknown := set(options.parsers) - set(TARGETS):
        parser.error(f"no parser {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    bad = 0
    print("parser,seconds,inputs,reached_new_code,crashes", flush=True)
    for name in options.parsers or TARGETS:
        tried, kept, crashes, said = start(name, options.seconds, HERE / "corpus" / name)
        print(f"{name},{options.seconds},{tried},{kept},{crashes}", flush=True)
        if crashes:
            print(said[-3000:], file=sys.stderr, flush=True)
        bad += crashes
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
