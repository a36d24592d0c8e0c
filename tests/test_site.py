"""The built site in a real browser with the network cut off, and the checks of `.ci/docs.py` shown something bad.

Needs Chromium (CHROMIUM=/path/to/it, or one on PATH) and playwright. With CI=true their absence is a failure, otherwise a skip."""
import base64, io, json, os, re, shutil, subprocess, sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from recon_nb.pixels import to_model, to_pixels
from recon_nb.shapes import draw_shapes
from test_painter import painter, shipped, unpack

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
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu', '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream'])
        yield browser
        browser.close()


@contextmanager
def opened(chromium, site):
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


@pytest.fixture
def reader(chromium, site):
    with opened(chromium, site) as start: yield start


LOOK = """() => { const maths = [...document.querySelectorAll('main math')];
  return {width: document.documentElement.scrollWidth, h1: document.querySelectorAll('h1').length, title: document.title, formulas: maths.length,
    flat: maths.filter(m => !m.closest('details:not([open])') && m.getBoundingClientRect().width < 2).length,
    raw: [...document.querySelectorAll('main .math')].filter(e => /\\\\[([]/.test(e.textContent) && !e.querySelector('math')).length} }"""
MEASURES = (Path(__file__).parent/'measures.js').read_text(encoding='utf-8')
OPEN_FOLDS = "document.querySelectorAll('details').forEach(d => d.open = true)"
SETTLED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


def measure(page, *what):
    "Functions of measures.js, each by its name."
    return page.evaluate(f"(() => {{ const m = {MEASURES}; return Object.fromEntries({json.dumps(what)}.map(k => [k, m[k]()])); }})()")


def is_dark(page, dark): page.wait_for_function(f"document.documentElement.classList.contains('quarto-dark') === {json.dumps(dark)}")


def look_at(page):
    "One page at the desk in light and dark, and on a phone."
    page.evaluate(OPEN_FOLDS)
    page.evaluate(SETTLED)
    found = dict(desk=measure(page, 'contrast', 'cut', 'folds'))
    page.emulate_media(color_scheme='dark'); is_dark(page, True)
    found['dark'] = measure(page, 'contrast')
    page.set_viewport_size(dict(width=400, height=900))
    page.evaluate(SETTLED)
    found['phone'] = measure(page, 'cut', 'folds', 'figures', 'tables')
    found['look'] = page.evaluate(LOOK)
    page.set_viewport_size(dict(width=1400, height=900))
    page.emulate_media(color_scheme='light')
    return found


@pytest.fixture(scope='module')
def seen(chromium, site):
    "What is measured on each page: each is opened once."
    with opened(chromium, site) as start:
        page, seen = start(), {}
        for f in sorted(site.rglob('*.html')):
            name = f.relative_to(site).as_posix()
            page.look(name); is_dark(page, False)
            seen[name] = look_at(page)
    return seen


def faults_of(seen, at, kind):
    found = {n: s[at][kind] for n,s in seen.items()}
    found = {n: f['faults'] if isinstance(f, dict) else f for n,f in found.items()}
    return {n: f for n,f in found.items() if f}


def test_every_page_opens_offline_and_fits(seen):
    "No page complains or asks another host for anything; none is wider than a phone; formulas have been drawn."
    looks = {n: s['look'] for n,s in seen.items()}
    assert {n: s for n,s in looks.items() if s['width'] > 400 or s['h1'] != 1 or not s['title'] or s['flat'] or s['raw']} == {}
    assert sum(s['formulas'] for s in looks.values()) > 50


@pytest.mark.parametrize('at', ['desk', 'dark'])
def test_every_text_stands_out_from_its_ground(seen, at):
    assert sum(s[at]['contrast']['texts'] for s in seen.values()) > 2000
    assert faults_of(seen, at, 'contrast') == {}


@pytest.mark.parametrize('at', ['desk', 'phone'])
def test_nothing_is_cut(seen, at):
    "Code, outputs and tables fit, or scroll and show it."
    assert faults_of(seen, at, 'cut') == {}


@pytest.mark.parametrize('at', ['desk', 'phone'])
def test_folds_hold_what_is_theirs(seen, at): assert faults_of(seen, at, 'folds') == {}


def test_figures_can_be_read_on_a_phone(seen): assert faults_of(seen, 'phone', 'figures') == {}


def test_tables_can_be_read_on_a_phone(seen): assert faults_of(seen, 'phone', 'tables') == {}


BAD = """<main style="width: 380px; color: #000; background: #fff"><p style="color: #999">grey</p><p>black</p>
<pre style="overflow: hidden; width: 100px">a line that is much too long for its box</pre><pre style="overflow: auto; width: 100px">another line that is too long</pre>
<div class="cell"><details open><summary>A solution of the first</summary><p style="width: 900px">wide</p></details><div class="cell-output">7</div></div>
<div class="cell-output-display" style="overflow: auto; width: 100px"><img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">
<table><tbody><tr><td>name</td><td style="min-width: 400px">1.0</td></tr><tr><td>x</td><td><div style="width: 20px">+1.2 [+0.3, +2.2]</div></td></tr></tbody></table></div></main>"""


def test_the_measures_find_what_they_are_for(chromium, tmp_path):
    (tmp_path/'bad.html').write_text(f'<!doctype html><body>{BAD}</body>')
    page = chromium.new_page()
    page.goto((tmp_path/'bad.html').as_uri())
    found = measure(page, 'contrast', 'cut', 'folds', 'figures', 'tables')
    page.close()
    assert [f[:4] for f in found['contrast']['faults']] == ['2.85'] and 'grey' in found['contrast']['faults'][0]
    assert sum(f.startswith('cut: pre') for f in found['cut']) == 1 and sum(f.startswith('scrolls without a sign: pre') for f in found['cut']) == 1
    assert [f.split(': ')[1] for f in found['folds']][:1] == ['something stands outside'] and any('sticks out' in f for f in found['folds'])
    assert found['figures'] == ['a dot does not open large']
    assert [f.split(':')[0] for f in found['tables']] == ['the first column leaves', 'on three lines']


def test_letters_in_figures_are_at_least_seven_points():
    "On a phone an inch of a figure has 96 px (nbs/reading.html): 7 points are 9.3 px."
    small = re.compile(r'(?:font_?size|labelsize|font\.size)[\'"]?\s*[=:]\s*(\d+(?:\.\d+)?)(?!\d*(?:px|rem|em))')
    assert small.findall("ax.legend(fontsize=6.5); tick_params(labelsize = 8); {'font.size': 9}; font-size:1") == ['6.5', '8', '9']
    sources = {p: ''.join(l for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' for l in c['source'])
               for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert {p.name: f for p,s in sources.items() if (f := [x for x in small.findall(s) if float(x) < 7])} == {}


def test_a_figure_opens_large(reader):
    "By a click and by the keyboard; Escape closes it."
    page = reader()
    page.look('start/the_idea.html')
    figure = page.locator('.figure-button').first
    before = figure.locator('img').bounding_box()['width']
    figure.click()
    large = page.locator('dialog.large img')
    assert large.is_visible() and large.bounding_box()['width'] > 1.2*before and large.get_attribute('alt') == figure.locator('img').get_attribute('alt')
    page.keyboard.press('Escape')
    assert not page.locator('dialog.large').is_visible()
    figure.focus(); page.keyboard.press('Enter')
    assert large.is_visible()
    page.locator('dialog.large').click(position=dict(x=5, y=5))
    assert not page.locator('dialog.large').is_visible()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_search_results_can_be_read(reader, scheme):
    page = reader(scheme=scheme)
    page.look('index.html'); is_dark(page, scheme == 'dark')
    page.keyboard.press('/'); page.keyboard.type('window')
    page.locator('.search-result').nth(2).wait_for()
    page.keyboard.press('ArrowDown')
    page.locator('.search-result').nth(1).hover()
    found = page.evaluate(f"({MEASURES}).contrast(document.querySelector('.smalldocs-search-results'))")
    assert found['texts'] >= 3 and found['faults'] == []


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


def test_the_first_thing_to_drag_is_in_the_first_screen(reader):
    "The page of the widgets begins with one: its first slider, and the pictures that it changes, need no scrolling."
    page = reader()
    page.look('widgets.html')
    widget = page.locator('main .rnb').first
    height = page.viewport_size['height']
    for part in (widget.locator('input[type=range]').first, widget.locator('.rnb-pic').first):
        box = part.bounding_box()
        assert 0 < box['y'] and box['y'] + box['height'] < height


# ---- the page that paints

DROP = """text => { const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], 'made.png', {type: 'image/png'}));
  document.getElementById('painter').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }"""
BYTES = "e => [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]"


def pixels(page, name):
    "What a canvas of the page shows, as bytes (h, w, 3)."
    found = np.array(page.locator(f'[data-is={name}]').evaluate(BYTES), 'uint8').reshape(-1, 4)
    side = int(len(found)**.5)
    return found[:,:3].reshape(side, side, 3)


def painted_by_pytorch(epoch, seen):
    return to_pixels(unpack(shipped(epoch))(to_model(seen[None]))[0])[0].astype(int)


@pytest.fixture
def made():
    "A picture made for the occasion, not square, and its bytes as a PNG."
    im = Image.fromarray(draw_shapes(12, size=96, seed=9)[0][4]).crop((0, 0, 96, 80))
    file = io.BytesIO()
    im.save(file, 'png')
    return im, base64.b64encode(file.getvalue()).decode()


def test_a_dropped_picture_is_painted_as_pytorch_paints_it(reader, made):
    "From a folder and without a network: the pixels on the screen are those of the package's generator, within one level of 255."
    page, (im, text) = reader(), made
    page.look('start/paint_your_photo.html')
    page.locator('#painter[data-shown]').wait_for()
    page.evaluate(DROP, text)
    page.wait_for_function("document.querySelector('[data-is=photo]').width === 96")
    last, size = painter.EPOCHS[-1], painter.SETTINGS['size']
    side, inner = 60, 30                                               # the frame opens at three quarters of the shorter side, 80 px
    page.wait_for_function(f"document.querySelector('#painter').dataset.shown === '{last}'")
    for name,s in [('truth', side), ('seen', inner)]:
        box = ((96-s)//2, (80-s)//2, (96+s)//2, (80+s)//2)
        want = np.asarray(im.resize((size, size), Image.Resampling.BICUBIC, box=box)).astype(int)
        assert np.abs(pixels(page, name) - want).max() <= 1, name
    got = pixels(page, 'painted')
    assert np.abs(got - painted_by_pytorch(last, pixels(page, 'seen'))).max() <= 1 and got.std() > 10
    both, w = pixels(page, 'composed'), slice(size//4, 3*size//4)
    assert (both[w,w] == pixels(page, 'truth')[w,w]).all() and (both[:size//4] == got[:size//4]).all()
    page.locator('[name=painter-epoch]').first.check()
    page.wait_for_function(f"document.querySelector('#painter').dataset.shown === '{painter.EPOCHS[0]}'")
    assert np.abs(pixels(page, 'painted') - painted_by_pytorch(painter.EPOCHS[0], pixels(page, 'seen'))).max() <= 1
    before = pixels(page, 'seen')
    page.locator('[data-is=frame]').focus(); page.keyboard.press('ArrowRight')
    assert (pixels(page, 'seen') != before).any()
    assert page.locator('[data-is=filters] > div').count() == 8 and page.locator('[data-is=neighbours] button').count() == 6


def test_the_frame_can_be_dragged_and_a_wrong_file_is_refused(reader, made):
    page = reader()
    page.look('start/paint_your_photo.html')
    page.locator('#painter[data-shown]').wait_for()
    before, box = pixels(page, 'painted'), page.locator('[data-is=frame]').bounding_box()
    page.mouse.move(box['x']+20, box['y']+20); page.mouse.down(); page.mouse.move(box['x']+60, box['y']+5, steps=4); page.mouse.up()
    assert page.locator('[data-is=frame]').bounding_box()['x'] > box['x']+10
    assert (pixels(page, 'painted') != before).any()
    page.evaluate(DROP, base64.b64encode(b'no picture').decode())
    page.get_by_text('no picture that your browser can open').wait_for()


def test_the_page_works_from_a_server_and_takes_a_picture(chromium, site):
    "Nothing is asked of anybody but the server that the page comes from; the camera's picture is painted."
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        here, asked = f'http://127.0.0.1:{server.server_port}/', []
        page = chromium.new_page()
        page.on('request', lambda r: asked.append(r.url))
        page.goto(f'{here}start/paint_your_photo.html')
        page.locator('#painter[data-shown]').wait_for()
        before = pixels(page, 'truth')
        page.locator('[data-is=open]').click()
        page.wait_for_function("document.querySelector('[data-is=video]').videoWidth > 0")
        page.locator('[data-is=snap]').click()
        page.wait_for_function("document.querySelector('[data-is=photo]').width > 48 && document.querySelector('[data-is=camera]').hidden")
        assert (pixels(page, 'truth') != before).any()
        page.close(); server.shutdown()
    assert len(asked) > 5 and [u for u in asked if not u.startswith((here, 'data:', 'blob:'))] == []


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
    ('<p id="f"></p>', 'two things called #f'), ('<p>[<a href="core.html">f</a>](core.html)</p>', 'a link is shown as it is written'), ('<p>'+'x'*3_000_001+'</p>', 'MB; allowed 3')])
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
    g, bands, last = docs.groups(['00_core', '20_masks', 'api', 'contributing', 'house_rules', 'how_to/new', 'how_to/resume', 'index', 'tutorials/first_run', 'tutorials/zzz'])
    assert g['Start'] == ['index', 'tutorials/first_run'] and g['Tutorials'] == ['tutorials/zzz'] and g['How-to'] == ['how_to/resume', 'how_to/new']
    assert bands == {'Shared by all': ['00_core'], 'Masks, networks, losses, targets': ['20_masks']} and last == ['contributing', 'house_rules'] and g['The library'] == ['api']


@pytest.fixture
def pages(tmp_path):
    "Three pages of a path, and their built pages; `page` writes one of them anew."
    (tmp_path/'nbs/start').mkdir(parents=True); (tmp_path/'nbs/tutorials').mkdir()
    def page(name, title, ending, code='x = 1', arrow=''):
        cells = [dict(cell_type='markdown', source=f'# {title}\n\n> a line'), dict(cell_type='code', source=code), dict(cell_type='markdown', source=ending)]
        (tmp_path/f'nbs/{name}.ipynb').write_text(json.dumps(dict(cells=cells)))
        html = tmp_path/f"out/{name.removeprefix('20_').removeprefix('30_')}.html"
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(f'<div class="nav-page nav-page-next"><a href="{arrow}" class="pagination-link">')
    page('start/the_idea', 'The idea', '## Next\n\n[A run](../tutorials/first_run.ipynb): do it.', arrow='../tutorials/first_run.html')
    page('tutorials/first_run', 'A run', '## Next\n\n[What came of it](paper_walkthrough.ipynb).', arrow='../tutorials/paper_walkthrough.html')
    page('tutorials/paper_walkthrough', 'What came of it', '## Next\n\nRead [Masks](../20_masks.ipynb#a).', arrow='../masks.html')
    page('20_masks', 'Masks', '## Next\n\n[Layers](30_layers.ipynb).', arrow='layers.html')
    page('30_layers', 'Layers', '## See also\n\n[A run](tutorials/first_run.ipynb).')
    return page, lambda: (docs.what_is_next(tmp_path, tmp_path/'out') + docs.called_by_file(tmp_path)
                          + docs.first_path(tmp_path, ['start/the_idea', 'tutorials/first_run']))


def test_the_first_path_is_one(pages):
    "Each page ends where the next begins, in words, link and arrow, and stays short."
    page, faults = pages
    assert faults() == []
    end = '## Next\n\n[A run](../tutorials/first_run.ipynb): do it.'
    for how, fault in [(dict(ending='## Next\n\n[What came of it](../tutorials/paper_walkthrough.ipynb)'), 'the sidebar goes on with tutorials/first_run'),
                       (dict(ending='That is all.'), 'does not end with what is next'),
                       (dict(ending=end + '\n\n## More\n\nNothing.'), 'does not end with what is next'),
                       (dict(ending=end.replace('## Next', '## Next steps')), 'does not end with what is next'),
                       (dict(ending='## Next\n\nNothing.'), 'Next leads to nothing'),
                       (dict(ending='[`99_gone`](../99_gone.ipynb)\n\n' + end), 'calls ../99_gone.ipynb by its file'),
                       (dict(ending='[see 20_masks](../20_masks.ipynb)\n\n' + end), 'calls ../20_masks.ipynb by its file'),
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
    ordinals = dict(first=1, second=2, third=3, fourth=4)
    pattern = re.compile(r'\b(first|second|third|fourth)\b[^.`]{0,80}\(?`stage=(\d)`')
    assert pattern.search("the third of the encoder's four stages (`stage=2`)")
    for path in sorted((ROOT/"nbs").rglob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'markdown': continue
            for word, n in pattern.findall(''.join(cell['source'])): assert ordinals[word] == int(n), (path.name, word, n)
