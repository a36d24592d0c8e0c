"`.ci/pages.py`: outputs that say something else than what is saved in a page are found, and what varies for good reasons is let pass."
import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'.ci'))
import gates                                                            # noqa: E402
import pages                                                            # noqa: E402


def cell(*outputs, source='f()'): return dict(id='one', cell_type='code', source=[source], metadata={}, execution_count=None, outputs=[*outputs])
def printed(text, name='stdout'): return dict(output_type='stream', name=name, text=text.splitlines(keepends=True))
def result(**data): return dict(output_type='execute_result', metadata={}, execution_count=None, data={k.replace('_', '/'): [v] for k,v in data.items()})
def table(*rows): return '<table>' + ''.join(f"<tr>{''.join(f'<td>{x}</td>' for x in r)}</tr>\n" for r in rows) + '</table>'


def found(saved, fresh, **kw):
    "What is found when a cell printed one text and now prints another."
    a, b = (cell(printed(x) if isinstance(x, str) else x, **kw) for x in (saved, fresh))
    return pages.differences([a], [b], 'nbs/p.ipynb')


@pytest.mark.parametrize('saved,fresh', [
    ('3 modules\n4 pages\n', '3 modules\n5 pages\n'),                   # a whole number
    ('PSNR 12.49 dB', 'PSNR 12.91 dB'), ('+1.5 points', '-1.5 points'), ('1,309 updates', '1,310 updates'),
    ('a window of 26 px', 'a frame of 26 px'), ('a', 'a\nb'), ('', 'a'), ('a', ''),
    ('1.2e-07', '1.2e-03'), ('0.5 of 1', '0.6 of 1'), ('the answer is 5.', 'the answer is 6.'), ('36e0605a', '36e0606a'), ('torch.Size([4, 3])', 'torch.Size([4, 2])'), ('10 classes in 3 s', '11 classes in 3 s')])
def test_what_has_changed_is_found(saved, fresh):
    fault, = found(saved, fresh)
    assert fault.startswith('nbs/p.ipynb, cell one: - saved, + fresh\n')
    for sign,text in (('-', saved), ('+', fresh)):
        for line in set(text.splitlines()) - {'a', '3 modules'}: assert f'   {sign}{line}' in fault
    assert len(fault.splitlines()) <= 3


@pytest.mark.parametrize('saved,fresh', [
    ('loss 0.4555', 'loss 0.4550'), ('PSNR 12.49 dB, 0.12 more', 'PSNR 12.43 dB, 0.13 more'), ('-0.00', '0.00'),
    ('about 10 s and 5.4 MB on cpu', 'about 2 min and 12.0 GB on cpu'), ('3 runs, 62 ms an update', '3 runs, 140.5 ms an update'),
    ('loss  1.0\n----\n', 'loss 0.99\n-----\n'), ('<f at 0x7fae01c3>', '<f at 0x55d1f3>'), ('1.7e-16', '2.2e-16'), ('dtype: object', 'dtype: str'),
    ('00:01<00:02, 1300.5it/s', '00:03<00:01, 900it/s')])
def test_rounding_times_addresses_and_spaces_may_differ(saved, fresh): assert found(saved, fresh) == []


@pytest.mark.parametrize('here,there,ok', [('13,000 photos cached, 39.9 MB; clear_cache() frees them\na', 'a', True),
                                           ('20 photos cached, 61.4 kB; clear_cache() frees them', '21 photos cached, 61.4 kB; clear_cache() frees them', False),
                                           ('20 photos cached\na', 'a', False)])
def test_the_cache_is_filled_by_the_page_that_comes_first(here, there, ok):
    "Two processes share the pages and a cache: which page reads a set first is another one each time."
    assert (found(here, there) == []) == (found(there, here) == []) == ok


def test_a_record_s_times_are_compared(): assert found('72 minutes on one core', '73 minutes on one core')


def test_of_a_table_what_a_reader_sees_is_compared():
    a = result(text_html='<style>td {color: #123}</style>'+table(('seed', 1), ('ours &lt; 3', '0.50')), text_plain='seed 1 ...')
    assert found(a, result(text_html=table(('seed', 1), ('ours &lt; 3', '0.51')), text_plain='wider ... seed 1')) == []
    fault, = found(a, result(text_html=table(('seed', 1), ('ours &lt; 3', '0.62')), text_plain='seed 1 ...'))
    assert fault.splitlines()[1:] == ['   -ours < 3 0.50', '   +ours < 3 0.62']


def test_a_picture_stays_a_picture_and_a_widget_a_widget():
    a, b = (result(image_png=x, text_plain=f'<Figure {x}>') for x in ('abc', 'abd'))
    w, v = (result(text_html=f'<p>{x}</p><script>{x}</script>') for x in ('abc', 'abd'))
    assert found(a, b) == found(w, v) == []
    assert '-[picture]\n   +[widget]' in found(a, w)[0] and '-[picture]' in found(a, printed(''))[0]


def test_a_marked_cell_may_say_something_else_but_not_nothing():
    marked = dict(source='#| varies seconds\nf()')
    assert found('12 of 20', 'all of 31\nand more', **marked) == []
    assert '-[text]' in found('12 of 20', '', **marked)[0]
    assert found('12 of 20', result(image_png='abc'), **marked)
    assert found('12 of 20', '13 of 20', source='# varies\nf()'), 'only the directive marks a cell'


def test_a_page_with_a_short_form_is_compared_as_if_marked():
    short = cell(source="FULL = 'IN_TEST' not in os.environ")
    a, b, c = (cell(*x) for x in ([printed('12 of 20')], [printed('1 of 2')], []))
    assert pages.differences([short, a], [short, b], 'p') == []
    assert pages.differences([short, a], [short, c], 'p')


def test_warnings_count_where_they_are_saved():
    warned, other = (cell(printed(f'{x} skipped\n', 'stderr'), printed('3')) for x in 'ab')
    quiet = cell(printed('3'))
    assert pages.differences([quiet], [warned], 'p') == []
    assert pages.differences([warned], [other], 'p') and pages.differences([warned], [quiet], 'p')


def test_what_is_skipped_and_prose_say_what_they_said():
    text = dict(id='two', cell_type='markdown', source=['a'])
    assert pages.differences([text, cell(printed('a'), source='#| slow\nf()')], [text, cell(printed('a'), source='#| slow\nf()')], 'p') == []


def test_each_mark_gives_its_reason():
    sources = {(p, c['id']): pages.source_of(c) for p in pages.notebooks(ROOT)[0] for c in pages.cells_of(ROOT/p)}
    assert [where for where,s in sources.items() if re.search(r'^#\| *varies\b(?! \w)', s, re.M)] == []


@pytest.fixture
def house(tmp_path, monkeypatch):
    "A repository of four pages, one of them out of date and one that fails, and `say`, which runs `.ci/pages.py` on it."
    page = {'good': cell(printed('2\n'), source='print(1+1)'), 'stale': cell(printed('3\n'), source='print(1+1)'),
            'broken': cell(printed('2\n'), source='print(1/0)'), 'skipped': cell(printed('9\n'), source='#| slow\nprint(1+1)')}
    (tmp_path/'nbs').mkdir()
    for name,c in page.items():
        nb = dict(cells=[c], metadata=dict(kernelspec=dict(name='python3', language='python', display_name='python3')), nbformat=4, nbformat_minor=5)
        (tmp_path/f'nbs/{name}.ipynb').write_text(json.dumps(nb, indent=1)+'\n')
    (tmp_path/'pyproject.toml').write_text('[project]\nname = "house"\nversion = "0.1"\n[tool.nbdev]\ntst_flags = "slow"\n')
    (tmp_path/'house').mkdir()
    (tmp_path/'house/__init__.py').write_text('__version__ = "0.1"\n')
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    monkeypatch.setattr(pages, 'ROOT', tmp_path)
    monkeypatch.setattr(gates, 'ROOT', tmp_path)
    monkeypatch.chdir(tmp_path)
    def say(*words):
        monkeypatch.setattr(sys, 'argv', ['pages.py', *words])
        return pages.main()
    return say


def saved_in(name): return json.loads(Path(f'nbs/{name}.ipynb').read_text())['cells'][0]['outputs'][0]['text']


def test_stale_and_failing_pages_are_reported_and_nothing_is_changed(house, capfd):
    before = {p: p.read_bytes() for p in Path('nbs').iterdir()}
    assert house() == 1
    out, _ = capfd.readouterr()
    assert 'ZeroDivisionError' in out and 'not compared, for they failed: broken.ipynb' in out
    assert 'nbs/stale.ipynb, cell one: - saved, + fresh\n   -3\n   +2\noutputs differ: nbs/stale.ipynb\n' in out
    assert 'python .ci/pages.py --save nbs/stale.ipynb\n' in out
    assert '4 pages executed; the outputs of 1 differ from the saved ones' in out
    assert before == {p: p.read_bytes() for p in Path('nbs').iterdir()}
    assert gates.count_notebooks(out) == dict(passed=2, failed=2, skipped=0)
    assert gates.count_notebooks(out[:90]) == dict(passed=0, failed=4, skipped=0), 'a run that was cut off has passed nothing'


def test_measures_alone_are_a_fault_if_strict(house, capfd):
    nb = json.loads(Path('nbs/stale.ipynb').read_text())
    nb['cells'][0] = cell(printed('right: 0.25, 25% of 80\n'), source="print('right: 0.75, 75% of 80')")
    Path('nbs/stale.ipynb').write_text(json.dumps(nb, indent=1)+'\n')
    assert house('nbs/stale.ipynb') == 0
    out, _ = capfd.readouterr()
    assert '   -right: 0.25, 25% of 80\n   +right: 0.75, 75% of 80\nonly measures differ, or words that may follow from them: nbs/stale.ipynb\n' in out
    assert house('--strict', 'nbs/stale.ipynb') == 1 and 'outputs differ: nbs/stale.ipynb' in capfd.readouterr()[0]


@pytest.mark.parametrize('saved,fresh,fault', [('5 of 10, 3.2 dB', '5 of 10, 9.2 dB', False), ('5 of 10, 3.2 dB', '6 of 10, 3.2 dB', True),
                                               ('50% right', '60% right', False), ('50% right', '50% wrong', True), ('a 1', 'a 1\nb 1', True), ('run-918aed.jsonl', 'run-004d78.jsonl', True),
                                               ('it helps\n2.1 points', 'it does not\n0.1 points', True), ('2.1 points\nit helps', '0.1 points\nit does not', False),
                                               ('2.1 points\n5 of 10', '0.1 points\n6 of 10', True)])
def test_what_is_measured_and_what_is_counted(saved, fresh, fault):
    a, b = cell(printed(saved)), cell(printed(fresh))
    assert bool(pages.differences([a], [b], 'p', measured=False)) is fault and pages.differences([a], [b], 'p')


def test_words_may_follow_from_another_measure_but_not_go_before_it():
    words, measures = (['it helps', 'it does not'], ['2.1 points', '0.1 points'])
    page = lambda i, *order: [cell(printed(x[i])) for x in order]
    fault = lambda *order: bool(pages.differences(page(0, *order), page(1, *order), 'p', measured=False))
    assert not fault(measures, words) and not fault([f'{m}\n{w}' for m,w in zip(measures, words, strict=True)])
    assert fault(words, measures) and fault(words) and fault(['2.1 points', '2.1 points'], words)
    assert fault(measures, ['7 layers', '8 layers']), 'nobody trains to another count'
    loose = dict(source='#| varies seconds\nf()')
    a, b = ([cell(printed(m), **loose), cell(printed(w))] for m,w in zip(measures, words, strict=True))
    assert pages.differences(a, b, 'p', measured=False), 'what varies for other reasons is no evidence'
    a, b = [cell(printed(measures[0])), cell(printed('a'), **loose)], [cell(printed(measures[1])), cell(**loose)]
    assert pages.differences(a, b, 'p', measured=False), 'a marked cell says something, whatever was measured before'


def test_a_new_warning_is_no_measure():
    a, b = cell(printed('lr 0.3')), cell(printed('lr 0.9\n', 'stderr'), printed('lr 3'))
    assert pages.differences([a], [b], 'p', measured=False)


def picture(level):
    "A grey picture as a notebook saves it."
    buf = io.BytesIO()
    Image.new('RGB', (4, 3), (level,)*3).save(buf, 'PNG')
    return dict(output_type='display_data', metadata={}, data={'image/png': base64.b64encode(buf.getvalue()).decode()})


@pytest.mark.parametrize('now, kept', [(100, False), (101, True), (98, True), (103, False)])
def test_a_picture_that_differs_by_rounding_is_kept(now, kept):
    "Two levels of 255 are rounding, three are another picture; one that is the same to the byte needs nothing."
    old, new = cell(printed('a'), picture(100)), cell(printed('b'), picture(now))
    fresh = new['outputs'][1]['data']['image/png']
    assert pages.keep_pictures([old], [new]) == kept
    assert new['outputs'][1]['data']['image/png'] == (old['outputs'][1]['data']['image/png'] if kept else fresh) and new['outputs'][0] == printed('b')
    assert pages.keep_pictures([{**old, 'id': 'another'}], [new]) == 0


def test_pages_in_order_pass(house, capfd):
    assert house('nbs/good.ipynb', 'nbs/skipped.ipynb') == 0
    out, _ = capfd.readouterr()
    assert '2 pages executed; the outputs of 0 differ' in out and 'Success.' in out
    with pytest.raises(SystemExit, match='nbs/new.ipynb: no such page'): house('nbs/new.ipynb')


def test_stale_pages_are_saved_and_what_is_left_out_is_named(house, capfd):
    good = Path('nbs/good.ipynb').read_bytes()
    assert house('--save') == 1
    out, _ = capfd.readouterr()
    assert saved_in('stale') == ['2\n'] and saved_in('skipped') == ['9\n'] and Path('nbs/good.ipynb').read_bytes() == good
    assert 'saved nbs/stale.ipynb\nnot saved: nbs/broken.ipynb fails:' in out
    assert '4 pages, 1 saved, 1 left out; to save one all the same: python .ci/pages.py --save PAGE' in out
    assert house('--save', '--limit', '.1') == 0
    assert 'not saved: nbs/good.ipynb takes over 0.1 s\n' in capfd.readouterr()[0]


def test_a_short_form_and_other_pictures_are_not_saved_unasked(house, capfd):
    short, draws = (json.loads(Path('nbs/good.ipynb').read_text()) for _ in range(2))
    short['cells'][0] |= dict(source="import os\nprint('short' if 'IN_TEST' in os.environ else 'full')", outputs=[printed('full')])
    draws['cells'][0] |= dict(source='from IPython.display import HTML\nHTML("<script>2</script>")', outputs=[result(text_html='<script>1</script>', text_plain='x')])
    for name,nb in dict(short=short, draws=draws).items(): Path(f'nbs/{name}.ipynb').write_text(json.dumps(nb))
    assert house('nbs/short.ipynb', 'nbs/draws.ipynb') == 0
    assert house('--save', 'nbs/short.ipynb') == 0 and saved_in('short') == ['full']
    assert house('--save') == 1                                        # another page fails
    assert 'not saved: nbs/draws.ipynb says what it said, and draws' in capfd.readouterr()[0]
    assert house('--save', 'nbs/draws.ipynb') == 0
    assert '<script>2</script>' in Path('nbs/draws.ipynb').read_text()
