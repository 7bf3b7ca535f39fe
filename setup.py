"""What pyproject.toml cannot say: where numpy has its headers."""

import numpy as np
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ksmemu.mm._data_memory",
            ["ksmemu/mm/data_memory.c"],
            include_dirs=[np.get_include()],
            extra_compile_args=["-O3", "-std=gnu11", "-fvisibility=hidden"],
        )
    ]
)
