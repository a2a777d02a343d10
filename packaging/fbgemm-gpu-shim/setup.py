"""Stands in for fbgemm-gpu on a CPU machine.

TorchRec asks for `fbgemm-gpu`, whose CUDA build overwrites the files of `fbgemm-gpu-cpu` and then fails to
load. This package has that name, no modules, and depends on the CPU build instead.
"""

from setuptools import setup

setup(name="fbgemm-gpu", version="1.8.0+cpu.shim", packages=[], install_requires=["fbgemm-gpu-cpu==1.8.0"])
