#!/usr/bin/env bash
# TensorBoard: EventAccumulator, by which scripts read logs, hands back 10,000 points of 30,000, drawn at random.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   tensorboard 2.21.0
#   expected: reading a log gives what was logged; a limit, if any, would keep the ends or every n-th
#   default: 10000 points, steps 2 to 29999, gaps up to 22, largest loss 0.333333
#   {'size_guidance': {'scalars': 0}}: 30000 points, steps 0 to 29999, gaps up to 1, largest loss 9
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile tensorboard==2.21.0
venv/bin/python - <<'END'
from tensorboard import version
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
print("tensorboard", version.VERSION)
print("expected: reading a log gives what was logged; a limit, if any, would keep the ends or every n-th")
writer = EventFileWriter("log")
for step in range(30_000):
    value = summary_pb2.Summary.Value(tag="loss", simple_value=9.0 if step == 0 else 1 / (step + 1))
    writer.add_event(event_pb2.Event(step=step, wall_time=step, summary=summary_pb2.Summary(value=[value])))
writer.close()


def read(**options):
    reader = EventAccumulator("log", **options)
    reader.Reload()
    points = reader.Scalars("loss")
    gaps = [later.step - earlier.step for earlier, later in zip(points, points[1:])]
    print(f"{options or 'default'}: {len(points)} points, steps {points[0].step} to {points[-1].step},",
          f"gaps up to {max(gaps)}, largest loss {max(point.value for point in points):g}")
    return len(points)


some, everything = read(), read(size_guidance={"scalars": 0})
assert everything == 30_000
assert some == 10_000, "every point is read now"
END
