"""The widgets in a real browser, by keyboard: live in JupyterLab and in Notebook 7, and their static forms from plain files with the network cut off.

Needs Chromium (CHROMIUM=/path/to/it, or one on PATH), playwright, jupyterlab and notebook. With CI=true their absence is a failure, otherwise a skip."""
import io, json, os, shutil, socket, subprocess, sys, time, urllib.request

import numpy as np
import pytest
from PIL import Image
from recon_nb.run import GANRun
from recon_nb.training import train_gan
from recon_nb.shapes import draw_shapes
from recon_nb.widgets import MaskExplorer, NeighbourExplorer, ReconBrowser, TrainingMonitor

TINY = dict(width=4, width_d=4, bs=16, size=32)


def missing(what):
    if os.environ.get('CI') == 'true': pytest.fail(f'{what}; with CI=true the browser tests must run')
    pytest.skip(what)


@pytest.fixture(scope='module')
def chromium():
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing("playwright is not installed (pip install -e '.[dev]')")
    names = 'chromium', 'chromium-browser', 'google-chrome'
    path = os.environ.get('CHROMIUM') or next((p for n in names if (p := shutil.which(n))), None)
    if not path: missing('there is no Chromium (apt-get install chromium, or CHROMIUM=/path/to/it)')
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--disable-gpu'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def here(tmp_path_factory): return tmp_path_factory.mktemp('lab')


@pytest.fixture(scope='module')
def runs(here):
    "Two small runs with snapshots, one of them with its looks."
    scenes = draw_shapes(100, size=48)[0]
    return {name: train_gan(scenes, preset, run_dir=here/name, epochs=3, lr_g=5e-3, **TINY) for name,preset in (('first', 'quick'), ('second', 'paper-sb'))}


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


@pytest.fixture(scope='module')
def lab(here, chromium):
    "The address of a server of both: Notebook 7 is an extension of the server that JupyterLab runs on."
    try: import jupyterlab, notebook  # noqa: E401,F401
    except ImportError as e: missing(f"{e.name} is not installed (pip install -e '.[dev]')")
    port = free_port()
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'TQDM_DISABLE': '1', 'JUPYTER_CONFIG_DIR': str(here/'config'), 'JUPYTER_DATA_DIR': str(here/'data'),
           'JUPYTERLAB_SETTINGS_DIR': str(here/'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(here/'workspaces'), 'IPYTHONDIR': str(here/'ipython')}
    log = open(here/'lab.txt', 'w')
    p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--allow-root', '--IdentityProvider.token=',
                          f'--ServerApp.root_dir={here}', '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
                         env=env, stdout=log, stderr=log)
    url = f'http://127.0.0.1:{port}'
    for _ in range(150):
        assert p.poll() is None, (here/'lab.txt').read_text()
        try: urllib.request.urlopen(f'{url}/api', timeout=5).read(); break
        except OSError: time.sleep(.2)
    yield url
    p.terminate()
    p.wait(20); log.close()


CELLS = """
from recon_nb.widgets import MaskExplorer
MaskExplorer()
---
from recon_nb.widgets import ReconBrowser
ReconBrowser(['first', 'second', 'nowhere'])
---
from recon_nb.training import train_gan
from recon_nb.shapes import draw_shapes
from recon_nb.widgets import TrainingMonitor
options = dict(epochs=500, width=8, width_d=8, bs=16)
run = train_gan(draw_shapes(200, size=48)[0], run_dir='stop-hook', hooks=TrainingMonitor(every=.3), **options)
---
TrainingMonitor(every=.3).train(draw_shapes(200, size=48)[0], run_dir='stop-background', **options)
""".strip().split('\n---\n')
WAIT = 90_000        # ms; on an idle machine all of it takes seconds
APPS = {                # where the notebook is, and what is on the page once its kernel is idle; before that, a cell's run is lost
    'JupyterLab': ('lab/tree/n.ipynb?reset', 'text=| Idle'),
    'Notebook 7': ('notebooks/n.ipynb', '.jp-NotebookKernelStatus-fade:not(.jp-NotebookKernelStatus-info)')}


@pytest.fixture(scope='module')
def notebook(chromium, lab, here, runs):
    "Runs cell `i` of one notebook in one of APPS; gives the page and the cell. One kernel serves all tests: importing torch is slow."
    code = [dict(cell_type='code', id=f'c{i}', metadata={}, source=c, outputs=[], execution_count=None) for i,c in enumerate(CELLS)]
    kernel = dict(name='python3', display_name='Python 3', language='python')
    (here/'n.ipynb').write_text(json.dumps(dict(cells=code, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    context = chromium.new_context(viewport=dict(width=1200, height=2600))
    context.route('**', lambda route: route.continue_() if '127.0.0.1' in route.request.url else route.abort())
    pages = {}
    def run(i, app='JupyterLab'):
        if app not in pages:
            (path, idle), pages[app] = APPS[app], context.new_page()
            pages[app].goto(f'{lab}/{path}')
            pages[app].locator(idle).first.wait_for(state='attached', timeout=WAIT)
        page = pages[app]
        cell = page.locator('.jp-Notebook .jp-CodeCell').nth(i)
        cell.locator('.cm-content').click()
        page.keyboard.press('Shift+Enter')
        return page, cell
    yield run
    context.close()


def picture(locator):
    "What the picture looks like on the screen. It may be replaced by its successor just now: then again."
    from playwright.sync_api import Error
    for _ in range(20):
        try: return np.asarray(Image.open(io.BytesIO(locator.screenshot(timeout=20000))).convert('RGB')).astype(int)
        except Error: time.sleep(.1)
    raise AssertionError(f'{locator} can not be pictured')


def until(ask, what, seconds=20):
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if ask(): return
        time.sleep(.1)
    raise AssertionError(f'{what}: not within {seconds} s')


def differs(a, b): return a.shape != b.shape or np.abs(a-b).mean() > .5


# --- live, in JupyterLab and in Notebook 7

def test_mask_explorer_in_jupyterlab(notebook):
    page, cell = notebook(0)
    alpha, judged = cell.locator('img[alt="scale image, alpha"]'), cell.locator('img[alt="what D sees, I_f"]')
    alpha.wait_for(timeout=WAIT)
    before = picture(alpha)
    cell.locator('.noUi-handle').first.focus()
    for _ in range(12): page.keyboard.press('ArrowRight')
    until(lambda: cell.locator('.widget-readout').first.inner_text() == '0.45', 'the readout')
    until(lambda: differs(picture(alpha), before), 'alpha after a dozen arrow keys')
    until(lambda: cell.get_by_text('20% of the picture').count() == 1, 'the last of a dozen changes')
    seen = picture(judged)
    cell.locator('select').first.select_option('canvas')
    until(lambda: differs(picture(judged), seen), 'the composition in the other view')


def test_mask_explorer_in_notebook_7(notebook):
    "By mouse and by a number that is typed: Notebook 7 takes the arrow keys for itself, also while a slider has the focus."
    page, cell = notebook(0, 'Notebook 7')
    alpha, said = cell.locator('img[alt="scale image, alpha"]'), cell.locator('.widget-readout').first
    alpha.wait_for(timeout=WAIT)
    before, box = picture(alpha), cell.locator('.noUi-handle').first.bounding_box()
    x, y = box['x']+box['width']/2, box['y']+box['height']/2
    page.mouse.move(x, y); page.mouse.down(); page.mouse.move(x+40, y, steps=5); page.mouse.up()
    until(lambda: float(said.inner_text()) > .4, 'the readout')
    until(lambda: differs(picture(alpha), before), 'alpha after the drag')
    said.click(); page.keyboard.press('Control+A'); page.keyboard.type('0.5'); page.keyboard.press('Enter')
    until(lambda: cell.get_by_text('25% of the picture').count() == 1, 'half the side, as typed')


def test_recon_browser_in_jupyterlab(notebook):
    page, cell = notebook(1)
    truth, out = cell.locator('img[alt="truth"]'), cell.locator('img[alt="raw output"]')
    truth.first.wait_for(timeout=WAIT)
    assert truth.count() == 2 and cell.get_by_text('there is no folder nowhere').is_visible()
    before = picture(truth.first)
    cell.locator('.noUi-handle').nth(0).focus()
    page.keyboard.press('ArrowRight')
    until(lambda: differs(picture(truth.first), before), 'the next photo')
    painted = picture(out.first)
    cell.locator('.noUi-handle').nth(1).focus()
    page.keyboard.press('ArrowLeft'); page.keyboard.press('ArrowLeft')
    until(lambda: cell.get_by_text('first, epoch 1').count() == 1, 'the first epoch')
    until(lambda: differs(picture(out.first), painted), 'what was painted then')


@pytest.mark.parametrize('i,how', [(2, 'hook'), (3, 'background')])
def test_stop_button_in_jupyterlab(notebook, here, i, how):
    "As a hook the cell computes while the button is pressed; in the background the kernel is free."
    page, cell = notebook(i)
    button = cell.get_by_role('button', name='Stop and save')
    button.wait_for(timeout=WAIT)
    cell.locator('svg[aria-label^="losses: L_D"]').wait_for(timeout=WAIT)        # curves come while it runs
    cell.locator('img[alt^="held-out photos"]').wait_for(timeout=WAIT)
    assert button.is_enabled()
    button.focus(); page.keyboard.press('Enter')
    cell.get_by_text('and saved').first.wait_for(timeout=WAIT)
    run = GANRun.load(here/f'stop-{how}')
    assert 0 < run.step < run.info['steps'] and run.history[-1]['step'] == run.step
    assert cell.get_by_role('button', name='stopped').is_disabled()


# --- static, from plain files, with the network cut off

@pytest.fixture
def offline(chromium, tmp_path):
    "Opens static forms as one page, offline; collects what the page asked for and complained about."
    context = chromium.new_context(offline=True, viewport=dict(width=1000, height=1200))
    page, asked, faults = context.new_page(), [], []
    page.on('request', lambda r: r.url.startswith('data:') or asked.append(r.url))
    page.on('pageerror', lambda e: faults.append(str(e)))
    page.on('console', lambda m: m.type == 'error' and faults.append(m.text))
    def show(*parts):
        f = tmp_path/'page.html'
        type(parts[0])(''.join(parts)).save(f)
        page.goto(f.as_uri())
        return page
    yield show
    assert [u for u in asked if not u.startswith('file:')] == [] and faults == []
    context.close()


def test_static_mask_explorer(offline):
    page = offline(MaskExplorer().static(shares=(.2, .5)), MaskExplorer(visible=.5).static(shares=(.2, .5)))
    first, second = page.locator('.rnb').nth(0), page.locator('.rnb').nth(1)
    alpha, other = (b.get_by_role('img', name='scale image, alpha') for b in (first, second))
    before, untouched = picture(alpha), picture(other)
    page.keyboard.press('Tab')                                                   # reaches the first slider
    page.keyboard.press('ArrowRight')
    assert differs(picture(alpha), before) and not differs(picture(other), untouched)
    assert first.locator('output').first.inner_text() == '0.50'
    assert first.get_by_role('slider').first.get_attribute('aria-valuetext') == '0.50'
    wide = (picture(alpha).mean(-1) < 40).mean()
    assert abs(wide-.25) < .03, wide                                             # half of each side is the window
    page.keyboard.press('Tab'); page.keyboard.press('ArrowRight')                # into the top left corner
    assert first.locator('output').nth(1).inner_text() == 'top left' and picture(alpha)[5:20,5:20].mean() < 40
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) == 2


def test_static_browser_and_neighbours(offline, runs):
    x, y = draw_shapes(60, size=32)
    page = offline(ReconBrowser(runs).static(photos=4), NeighbourExplorer(['pixels', runs['first']], x, labels=list(y)).static(shown=5))
    first, second = page.locator('.rnb').nth(0), page.locator('.rnb').nth(1)
    truth = first.get_by_role('img', name='first, truth', exact=True)
    composed = first.get_by_role('img', name='first, with the real centre', exact=True)
    before = picture(truth)
    first.get_by_role('button', name='photo 3').click()
    assert differs(picture(truth), before) and first.get_by_role('button', name='photo 3').get_attribute('aria-pressed') == 'true'
    page.keyboard.press('ArrowRight')
    assert first.get_by_role('button', name='photo 4').get_attribute('aria-pressed') == 'true'
    a, b = picture(truth), picture(composed)
    side = min(a.shape[:2]+b.shape[:2])                                          # a screenshot may gain a pixel
    a, b, m = a[:side,:side], b[:side,:side], slice(int(side*.4), int(side*.6))
    assert np.abs(a[m,m]-b[m,m]).mean() < 12 < np.abs(a-b)[:side//5].mean()      # the real centre, a painted surround
    score = first.locator('figcaption i').first.inner_text()
    first.get_by_role('slider').focus(); page.keyboard.press('Home')
    assert first.locator('output').inner_text() == '1' and first.locator('figcaption i').first.inner_text() != score
    near = second.get_by_role('img').first
    before = picture(near)
    second.get_by_role('button').nth(3).focus(); page.keyboard.press('Enter')
    assert differs(picture(near), before)


def test_static_monitor(offline, runs):
    page = offline(TrainingMonitor(runs['first'].dir).static())
    grid = page.get_by_role('img', name='held-out photos')
    before = picture(grid)
    page.keyboard.press('Tab'); page.keyboard.press('Home')
    assert differs(picture(grid), before)
    assert page.locator('svg').count() == 2 and page.locator('svg path').count() > 8
    page.set_viewport_size(dict(width=400, height=900))
    assert page.evaluate('document.documentElement.scrollWidth') == 400


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_static_is_legible(chromium, tmp_path, scheme):
    "Text stands out from the page, in both schemes, and nothing is wider than a phone."
    context = chromium.new_context(offline=True, color_scheme=scheme, viewport=dict(width=400, height=900))
    page = context.new_page()
    page.goto(MaskExplorer().static(shares=(.2, .5)).save(tmp_path/'m.html').as_uri())
    pixels = picture(page.locator('.rnb-controls'))
    back = np.median(pixels.reshape(-1, 3), 0).mean()
    assert (back > 200) == (scheme == 'light') and np.abs(pixels.mean(-1)-back).max() > 150
    assert page.evaluate('document.documentElement.scrollWidth') == 400
    context.close()
