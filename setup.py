"Packaging metadata comes from settings.ini; the static part stands in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

setup(version=cfg['version'], keywords=cfg['keywords'].split(), packages=[cfg['lib_name']],
      install_requires=cfg['requirements'].split(), extras_require={'dev': cfg['dev_requirements'].split()},
      entry_points={'console_scripts': cfg['console_scripts'].split(),
                    'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]})
