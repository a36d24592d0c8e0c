"""The built site in a real browser with the network cut off, and the checks of `.ci/docs.py` shown something bad.

Needs Chromium (CHROMIUM=/path/to/it, or one on PATH) and playwright. With CI=true their absence is a failure, otherwise a skip."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason='the layout of the site needs Python 3.11')
sys.path.insert(0, str(ROOT/'.ci'))
import docs                                                             # noqa: E402


def missing(what):
    if os.environ.get('CI') == 'true': pytest.fail(f'{what}; with CI=true the browser tests must run')
    pytest.skip(what)


@pytest.fixture(scope='module')
def site():
    "Built once; the gate `site` finds it there. RECON_NB_SITE names a site that is built already."
    if os.environ.get('RECON_NB_SITE'): return Path(os.environ['RECON_NB_SITE']).resolve()
    r = subprocess.run([sys.executable, str(ROOT/'.ci/docs.py')], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert r.returncode == 0, r.stderr
    return ROOT/'_docs'


@pytest.fixture(scope='module')
def chromium():
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing("playwright is not installed (pip install -e '.[dev]')")
    path = os.environ.get('CHROMIUM') or next((p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None)
    if not path: missing('there is no Chromium (apt-get install chromium, or CHROMIUM=/path/to/it)')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu'])
        yield browser
        browser.close()


@pytest.fixture
def reader(chromium, site):
    "Opens pages of the site from their folder, offline, as wide as a desk or a phone; whatever fails or complains is a fault."
    faults, contexts = [], []
    def start(width=1400, scheme='light'):
        c = chromium.new_context(offline=True, color_scheme=scheme, viewport=dict(width=width, height=900), reduced_motion='reduce')
        contexts.append(c)
        page = c.new_page()
        page.on('request', lambda r: r.url.split(':')[0] in ('file', 'data', 'blob') or faults.append(f'asked for {r.url}'))
        page.on('requestfailed', lambda r: r.failure == 'net::ERR_ABORTED' or faults.append(f'{r.url}: {r.failure}'))     # aborted: the next page was opened
        page.on('pageerror', lambda e: faults.append(f'{page.url}: {e}'))
        page.on('console', lambda m: m.type == 'error' and faults.append(f'{page.url}: {m.text}'))
        page.look = lambda name: page.goto((site/name).as_uri())
        return page
    yield start
    for c in contexts: c.close()
    assert faults == []


LOOK = """() => { const maths = [...document.querySelectorAll('main math')];
  return {width: document.documentElement.scrollWidth, h1: document.querySelectorAll('h1').length, title: document.title, formulas: maths.length,
    flat: maths.filter(m => !m.closest('details:not([open])') && m.getBoundingClientRect().width < 2).length,
    raw: [...document.querySelectorAll('main .math')].filter(e => /\\\\[([]/.test(e.textContent) && !e.querySelector('math')).length} }"""


def test_every_page_opens_offline_and_fits(reader, site):
    "No page complains or asks another host for anything; none is wider than a phone; formulas have been drawn."
    page, seen = reader(width=400), {}
    for f in sorted(site.rglob('*.html')):
        name = f.relative_to(site).as_posix()
        page.look(name)
        seen[name] = page.evaluate(LOOK)
    assert {n: s for n,s in seen.items() if s['width'] > 400 or s['h1'] != 1 or not s['title'] or s['flat'] or s['raw']} == {}
    assert sum(s['formulas'] for s in seen.values()) > 50


def test_search_finds_a_name_from_a_page_in_a_folder(reader):
    page = reader()
    page.look('tutorials/first_run.html')
    page.keyboard.press('/')                                            # the key that leads to the search field
    page.keyboard.type('window_slice')
    page.locator('.search-result').first.wait_for()
    page.keyboard.press('ArrowDown'); page.keyboard.press('Enter')
    page.wait_for_url('**/masks.html*')
    assert page.locator('#window_slice').count() == 1


def test_keyboard_and_phone(reader):
    "The first stop of the tab key leads past the menus; on a phone a button opens the sidebar."
    page = reader()
    page.look('masks.html')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip-link'
    assert page.locator('.skip-link').bounding_box()['y'] >= 0
    page.keyboard.press('Enter')
    assert page.evaluate('document.activeElement.tagName') == 'MAIN'
    page.set_viewport_size(dict(width=400, height=800))
    assert not page.locator('#quarto-sidebar a', has_text='API index').is_visible()
    page.locator('.quarto-btn-toggle').first.click()
    link = page.locator('#quarto-sidebar a', has_text='API index')
    link.wait_for(state='visible')
    link.click()
    page.wait_for_url('**/api.html')


def brightness(page): return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0,3).reduce((s,x) => s + +x, 0)/3")


def test_light_and_dark(reader):
    "The system's wish is followed, a choice of the reader's is kept on the next page."
    light, dark = reader(), reader(scheme='dark')
    light.look('index.html'); dark.look('index.html')
    assert brightness(light) > 200 and brightness(dark) < 60
    light.locator('[onclick*=Scheme], .quarto-color-scheme-toggle').first.click()
    light.wait_for_function("document.documentElement.classList.contains('quarto-dark')")
    light.look('masks.html')
    light.wait_for_timeout(100)
    assert brightness(light) < 60


def test_static_widgets_answer(reader, site):
    "Each slider that stands in a page moves by keyboard and changes what is said or drawn."
    page, tried = reader(), 0
    for f in sorted(site.rglob('*.html')):
        if '<input type="range"' not in f.read_text(encoding='utf-8'): continue
        page.look(f.relative_to(site).as_posix())
        for w in page.locator('.rnb').all():
            sliders = w.locator('input[type=range]')
            if not sliders.count(): continue
            s = sliders.first
            look = "e => [e.querySelector('input[type=range]').getAttribute('aria-valuetext'), ...[...e.querySelectorAll('.rnb-pic')].map(p => p.style.backgroundPosition)].join()"
            before = w.evaluate(look)
            s.focus()
            page.keyboard.press('ArrowLeft' if s.input_value() == s.get_attribute('max') else 'ArrowRight')
            assert w.evaluate(look) != before, f
            tried += 1
    if not tried: pytest.skip('no page has a static widget with a slider')


# ---- the checks find what they are for; no browser needed

GOOD = dict([('index.html', '<html><head><title>t</title></head><body><a class="sidebar-link" href="index.html">i</a><a class="sidebar-link" href="api.html">a</a>'
              '<h2 id="x">x</h2><a href="#x">x</a><img src="p.png" alt="a dot"></body></html>'),
             ('api.html', '<html><head><title>t</title></head><body><a id="core.f"></a></body></html>'), ('p.png', '')])


@pytest.fixture
def small(tmp_path):
    "A site of two pages for a library of one function, and what `check` says of it when files are changed."
    (tmp_path/'recon_nb').mkdir(); (tmp_path/'out').mkdir()
    (tmp_path/'recon_nb/core.py').write_text("__all__ = ['f']\ndef f(): pass\n")
    def faults(core='<title>t</title><p id="f">f</p>', **files):
        for n,text in {**GOOD, 'core.html': core, **{k.replace('_', '.'): v for k,v in files.items()}}.items(): (tmp_path/'out'/n).write_text(text)
        return docs.check(tmp_path/'out', tmp_path)
    return faults


def test_check_passes_what_is_whole(small):
    menu = GOOD['index.html'].replace('<h2', '<a class="sidebar-link" href="core.html">c</a><h2')
    assert small(index_html=menu) == []
    assert small() == ['core.html is not in the sidebar']


@pytest.mark.parametrize('body, fault', [
    ('<a href="nowhere.html">x</a>', 'nothing is at nowhere.html'), ('<a href="index.html#gone">x</a>', 'no anchor at index.html#gone'),
    ('<img src="p.png">', 'without alternative text'), ('<img src="p.png" alt=" ">', 'without alternative text'),
    ('<script src="https://a.b/c.js"></script>', 'needs another host: https://a.b/c.js'), ('<link rel="stylesheet" href="//a.b/c.css">', 'needs another host'),
    ('<img alt="x" src="http://a.b/c.png">', 'needs another host'), ('<p style="background:url(https://a.b/c.png)">', 'needs another host'),
    ('<style>@import url("https://a.b/c.css");</style>', 'needs another host'), ('<script>fetch("https://a.b/c")</script>', 'needs another host'),
    ('<p id="f"></p>', 'two things called #f'), ('<p>'+'x'*3_000_001+'</p>', 'MB; allowed 3')])
def test_check_finds(small, body, fault):
    assert any(fault in f for f in small(core=f'<title>t</title><p id="f">f</p>{body}'))


def test_check_wants_every_public_name(small):
    assert 'core.html says nothing about f' in small(core='<title>t</title>')
    assert 'core.f is missing from the API index' in small(api_html='<title>t</title>')


def test_alternative_text_and_sidebar():
    nb = dict(cells=[dict(cell_type='markdown', source='## Look\n\nThe *upper* row is `x`. Then more.'),
                     dict(cell_type='code', source='show(x)', outputs=[dict(data={'image/png': ''})]),
                     dict(cell_type='code', source="#| fig-alt: Three panels: D's mean\nshow(y)", outputs=[dict(data={'image/png': ''})])])
    docs.describe(nb)
    assert nb['cells'][1]['source'] == '#| fig-alt: "Figure: Look"\nshow(x)'
    assert nb['cells'][2]['source'] == '#| fig-alt: "Three panels: D\'s mean"\nshow(y)'
    g, bands, last = docs.groups(['00_core', '20_masks', 'api', 'contributing', 'how_to/new', 'how_to/resume', 'index', 'tutorials/first_run', 'tutorials/zzz'])
    assert g['Start'] == ['index', 'tutorials/first_run'] and g['Tutorials'] == ['tutorials/zzz'] and g['How-to'] == ['how_to/resume', 'how_to/new']
    assert bands == {'Shared by all': ['00_core'], 'Masks, networks, losses, targets': ['20_masks']} and last == ['contributing'] and g['The library'] == ['api']


@pytest.fixture
def pages(tmp_path):
    "Three pages of a path, and their built pages; `page` writes one of them anew."
    (tmp_path/'nbs/start').mkdir(parents=True); (tmp_path/'nbs/tutorials').mkdir()
    def page(name, title, ending, code='x = 1', arrow=''):
        cells = [dict(cell_type='markdown', source=f'# {title}\n\n> a line'), dict(cell_type='code', source=code), dict(cell_type='markdown', source=ending)]
        (tmp_path/f'nbs/{name}.ipynb').write_text(json.dumps(dict(cells=cells)))
        (tmp_path/f'out/{name}.html').parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/f'out/{name}.html').write_text(f'<div class="nav-page nav-page-next"><a href="{arrow}" class="pagination-link">')
    page('start/the_idea', 'The idea', '## Next\n\n[A run](../tutorials/first_run.ipynb): do it.', arrow='../tutorials/first_run.html')
    page('tutorials/first_run', 'A run', '## Next\n\n[What came of it](paper_walkthrough.ipynb).', arrow='../tutorials/paper_walkthrough.html')
    page('tutorials/paper_walkthrough', 'What came of it', 'The end.')
    return page, lambda: docs.first_path(tmp_path, tmp_path/'out', ['start/the_idea', 'tutorials/first_run'])


def test_the_first_path_is_one(pages):
    "Each page ends where the next begins, in words, link and arrow, and stays short."
    page, faults = pages
    assert faults() == []
    end = '## Next\n\n[A run](../tutorials/first_run.ipynb): do it.'
    for how, fault in [(dict(ending='## Next\n\n[What came of it](../tutorials/paper_walkthrough.ipynb)'), 'the sidebar goes on with tutorials/first_run'),
                       (dict(ending='That is all.'), 'Next leads to nothing'),
                       (dict(ending=end.replace('A run', 'Run it')), "calls tutorials/first_run 'Run it'"),
                       (dict(ending=end, arrow='first_run.html'), 'the arrow at its foot leads to start/first_run'),
                       (dict(ending='word '*800 + '\n\n' + end), 'words; allowed 700'),
                       (dict(ending=end, code='x = ' + '1'*90), 'more than 88 columns')]:
        page('start/the_idea', 'The idea', **{'arrow': '../tutorials/first_run.html', **how})
        found = faults()
        assert len(found) == 1 and fault in found[0], found
    page('start/the_idea', 'The idea', end, code='#| hide\nx = ' + '1'*90, arrow='../tutorials/first_run.html')
    assert faults() == []                                              # nobody sees a hidden cell


def test_colab_leaves_out_marked_cells(monkeypatch):
    "The line that tutorials run on Colab, in a shell of its own: a marked cell does nothing there, others run."
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell()
    shell.run_cell(docs.COLAB.splitlines()[-1].strip())
    shell.run_cell('#| realdata\na = 1'); shell.run_cell('#| slow\nb = 1')
    assert 'a' not in shell.user_ns and shell.user_ns['b'] == 1


def test_stages_in_prose_count_as_the_code_does():
    "From 1: the third stage is `stage=3`."
    import json, re
    ordinals = dict(first=1, second=2, third=3, fourth=4)
    pattern = re.compile(r'\b(first|second|third|fourth)\b[^.`]{0,80}\(?`stage=(\d)`')
    assert pattern.search("the third of the encoder's four stages (`stage=2`)")
    for path in sorted((ROOT/"nbs").rglob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'markdown': continue
            for word, n in pattern.findall(''.join(cell['source'])): assert ordinals[word] == int(n), (path.name, word, n)
