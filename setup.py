"""Everything stands in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg if key.endswith('_requirements')}
# The tests and notebooks exercise every extra but the multi-GPU one.
extras['dev'] += [need for name in ('data', 'app', 'export', 'timm', 'bench') for need in extras[name]]

setup(
    name=cfg['lib_name'], version=cfg['version'], license='Apache-2.0',
    description=cfg['description'], keywords=cfg['keywords'].split(),
    long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    packages=find_packages(include=['artinsight', 'artinsight.*']), include_package_data=True,
    # nbdev_export leaves a pyproject.toml that promises classifiers: without any, pip would refuse to install.
    classifiers=['Development Status :: 3 - Alpha', f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}", 'Programming Language :: Python :: 3'],
    package_data={'artinsight': ['*.csv'], 'artinsight.use': ['*.css']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg.get('console_scripts', '').split(),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
