"Packaging metadata comes from settings.ini; the static part stands in pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

# `onnx_requirements` becomes the extra `onnx`, and so on; who develops needs them all.
extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')}
extras['dev'] = [r for rs in extras.values() for r in rs]

# On GitHub README's links and pictures are relative; a package index can follow only whole addresses.
repo = 'https://github.com/recon-nb/recon_nb'
ours = r'(\]\(|src="|href=")((?:nbs|recon_nb|tests|\.ci)/[^)\s"]*|LICENSE|[A-Z]+\.(?:md|cff))(?=[)\"])'
def whole(m): return f"{m[1]}{repo}/{'raw' if m[2].endswith('.png') else 'blob'}/main/{m[2]}"
readme = here/'README.md'
text = re.sub(ours, whole, readme.read_text(encoding='utf-8')) if readme.exists() else ''

setup(version=cfg['version'], keywords=cfg['keywords'].split(), packages=[cfg['lib_name']],
      long_description=text, long_description_content_type='text/markdown',
      install_requires=cfg['requirements'].split(), extras_require=extras,
      entry_points={'console_scripts': cfg['console_scripts'].split(),
                    'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]})
