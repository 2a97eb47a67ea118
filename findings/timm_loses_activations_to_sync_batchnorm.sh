#!/usr/bin/env bash
# torch and timm: convert_sync_batchnorm leaves an EfficientNet without most of its activations.
#
# Run on 2026-11-29, Python 3.11, 2 cores. Output:
#   torch 2.14.1+cu130 timm 1.0.31
#   expected: another way to take the statistics; in eval mode, on one process, the same outputs
#   as built: outputs apart by 0 of their largest
#   torch.nn.SyncBatchNorm.convert_sync_batchnorm: outputs apart by 5.43e+04 of their largest
#   timm.layers.convert_sync_batchnorm: outputs apart by 0 of their largest
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
venv/bin/python - <<'END'
import timm
import torch
from timm.layers import convert_sync_batchnorm

print("torch", torch.__version__, "timm", timm.__version__)
print("expected: another way to take the statistics; in eval mode, on one process, the same outputs")
torch.manual_seed(0)
images = torch.randn(2, 3, 128, 128)


def converted(convert):
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    return convert(model).eval()


models = {
    "as built": converted(lambda model: model),
    "torch.nn.SyncBatchNorm.convert_sync_batchnorm": converted(torch.nn.SyncBatchNorm.convert_sync_batchnorm),
    "timm.layers.convert_sync_batchnorm": converted(convert_sync_batchnorm),
}
with torch.no_grad():
    outputs = {name: model(images) for name, model in models.items()}
first = outputs["as built"]
apart = {name: ((out - first).abs().max() / first.abs().max()).item() for name, out in outputs.items()}
for name in models:
    print(f"{name}: outputs apart by {apart[name]:.3g} of their largest")
print("timm's BatchNorm layers hold the activation too; torch puts a SyncBatchNorm in their place, which applies none")
assert apart["torch.nn.SyncBatchNorm.convert_sync_batchnorm"] > 0.01, "the activations are kept now"
assert apart["timm.layers.convert_sync_batchnorm"] < 1e-5
END
