"What GitHub reads: workflows that may do no more than they must, a release that is checked before it is uploaded, forms by GitHub's own rules."
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT/'.github'
pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason='only the repository has it')
WORKFLOWS = sorted(GITHUB.glob('workflows/*.yml'))
FORMS = sorted(p for p in GITHUB.glob('ISSUE_TEMPLATE/*.yml') if p.stem != 'config')


def read(path): return yaml.safe_load(path.read_text(encoding='utf-8'))
def steps(job): return job['steps']
def release(): return read(GITHUB/'workflows'/'release.yml')


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_is_pinned_and_may_do_little(path):
    flow, text = read(path), path.read_text(encoding='utf-8')
    assert True in flow and 'on' not in flow                             # YAML 1.1 reads `on` as a truth: GitHub knows
    pins = re.findall(r'uses: *(\S+)(.*)', text)
    assert pins and all(re.fullmatch(r'[\w.-]+/[\w./-]+@[0-9a-f]{40}', uses) and re.fullmatch(r' # v\d+(\.\d+)*', version) for uses, version in pins), pins
    assert not re.search(r'\bsecrets\b|password|pull_request_target', text.split('jobs:')[1])
    assert flow['permissions'] in ({}, {'contents': 'read'})
    for name, job in flow['jobs'].items():
        assert job['timeout-minutes'] <= 60
        more = {k for k, v in job.get('permissions', {}).items() if v == 'write'}
        assert more <= {'id-token', 'pages'} and (not more or 'environment' in job), name
        for s in steps(job):
            if s.get('uses', '').startswith('actions/checkout@'): assert s['with']['persist-credentials'] is False
            assert not re.search(r'\$\{\{.*github\.(event|ref|head)', s.get('run', ''))      # a name that somebody chose is no shell code


def test_one_version_of_an_action_everywhere():
    pins = {}
    for p in WORKFLOWS:
        for action, pin in re.findall(r'uses: *([\w./-]+)@(.*)', p.read_text(encoding='utf-8')): pins.setdefault(action, set()).add(pin)
    assert all(len(v) == 1 for v in pins.values()), pins


def test_a_release_is_built_checked_and_only_then_uploaded():
    flow = release()
    assert flow[True] == {'push': {'tags': ['v*']}} and flow['permissions'] == {}
    build, check, publish = (flow['jobs'][k] for k in ('build', 'check', 'publish'))
    assert check['needs'] == 'build' and set(publish['needs']) == {'build', 'check'}
    runs = '\n'.join(s.get('run', '') for s in steps(build))
    assert 'python -m build' in runs and 'twine check --strict dist/*' in runs
    runs = '\n'.join(s.get('run', '') for s in steps(check))
    assert 'pip install dist/*.whl' in runs and 'recon-selftest' in runs and 'rm -r recon_nb' in runs       # the wheel's modules, not the checkout's
    tests = re.findall(r'tests/\w+\.py', runs)
    assert tests and all((ROOT/t).is_file() for t in tests)
    assert publish['permissions'] == {'id-token': 'write'} and publish['environment']['name'] == 'pypi'
    assert [s['uses'].split('@')[0] for s in steps(publish)] == ['actions/download-artifact', 'pypa/gh-action-pypi-publish']
    assert 'with' not in steps(publish)[1]                               # no user, no password, no other index
    ini = ConfigParser(delimiters=['='])
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    pythons = check['strategy']['matrix']['python']
    assert pythons[0] == ini['DEFAULT']['min_python'] and pythons == [read(GITHUB/'workflows'/'test.yml')['jobs']['test']['strategy']['matrix']['python'][i] for i in (0, -1)]


def test_the_tag_must_be_the_version_and_the_changelog_dated(tmp_path):
    import subprocess
    step = next(s['run'] for s in steps(release()['jobs']['build']) if 'GITHUB_REF_NAME' in s.get('run', ''))
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nversion = 0.2.0\nmin_python = 3.10\n')
    def passes(tag): return not subprocess.run(['bash', '-e', '-c', step], cwd=tmp_path, env={'GITHUB_REF_NAME': tag, 'PATH': '/usr/bin:/bin'}, capture_output=True).returncode
    (tmp_path/'CHANGELOG.md').write_text('## [0.2.0] - unreleased\n')
    assert not passes('v0.2.0')
    (tmp_path/'CHANGELOG.md').write_text('## [0.2.0] - 2026-12-01\n')
    assert passes('v0.2.0') and not passes('v0.2.1') and not passes('0.2.0')


@pytest.mark.parametrize('path', FORMS, ids=lambda p: p.stem)
def test_a_form_keeps_githubs_rules(path):
    form = read(path)
    assert {'name', 'description', 'body'} <= form.keys() <= {'name', 'description', 'title', 'labels', 'assignees', 'projects', 'type', 'body'}
    assert all(isinstance(form[k], str) and form[k] for k in ('name', 'description')) and all(isinstance(x, str) for x in form.get('labels', []))
    may = dict(markdown={'value'}, textarea={'label', 'description', 'placeholder', 'value', 'render'}, input={'label', 'description', 'placeholder', 'value'},
               dropdown={'label', 'description', 'multiple', 'options', 'default'}, checkboxes={'label', 'description', 'options'})
    for part in form['body']:
        assert part.keys() <= {'type', 'id', 'attributes', 'validations'} and part['type'] in may, part
        given = part['attributes']
        assert given.keys() <= may[part['type']] and given.get('value' if part['type'] == 'markdown' else 'label'), part
        assert re.fullmatch(r'[\w-]+', part.get('id', 'none')) and all(isinstance(v, bool) for v in part.get('validations', {}).values())
        if part['type'] == 'dropdown': assert all(isinstance(o, str) for o in given['options']) and len({*given['options']}) == len(given['options'])
        if part['type'] == 'checkboxes': assert all(o['label'] and o.keys() <= {'label', 'required'} for o in given['options'])
    fields = [p for p in form['body'] if p['type'] != 'markdown']
    labels, ids = [p['attributes']['label'] for p in fields], [p['id'] for p in fields]
    assert fields and len({*labels}) == len(labels) and len({*ids}) == len(ids)
    assert any(p.get('validations', {}).get('required') for p in fields)


def test_forms_and_a_way_to_report_in_private():
    assert {p.stem for p in FORMS} == {'bug', 'question', 'idea'}
    links = read(GITHUB/'ISSUE_TEMPLATE'/'config.yml')['contact_links']
    assert all(link.keys() == {'name', 'url', 'about'} and link['url'].startswith('https://') for link in links)
    text = (GITHUB/'SECURITY.md').read_text(encoding='utf-8')
    assert any(link['url'].endswith('/security/advisories/new') and link['url'] in text for link in links)


def test_what_the_bug_form_asks_for_runs():
    asked = next(p['attributes']['description'] for p in read(GITHUB/'ISSUE_TEMPLATE'/'bug.yml')['body'] if p['id'] == 'machine')
    code, = re.findall(r'python -c "(.*?)"', asked)
    exec(code, {})
