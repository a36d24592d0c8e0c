"""Do the pages still say what they have saved? They are executed in a copy of the repository, so the checkout stays as it is.

    python .ci/pages.py                  execute each page once, compare what it says with what is saved in it; exit 1 if any differs
    python .ci/pages.py nbs/39_*.ipynb   only these
    python .ci/pages.py --strict         measures alone are a fault, too
    python .ci/pages.py --save           execute each page that takes up to a minute; save the outputs of those that say something else
    python .ci/pages.py --save PAGES     save the outputs of these pages, whatever they take and say

Words and whole numbers have to be the same. Another number may differ by 2 %, or by one in its last digit if that is under a tenth of it:
processors round in different ways. What a page has trained may differ by more, so pages that differ in decimals and per cents alone are
printed, and are a fault with `--strict` only; so are words below the first such measure: a page that trains to another number may draw
another conclusion. Times (`3 s`, `20 ms`, `2 min`) and estimates of memory are not compared, and of two pages that read a set whichever
comes first says that it is cached. Pictures and widgets only have to be there. A
cell whose output is another one each time, or on each machine, says so: `#| varies the reason`. Then only the kinds of its outputs are
compared: text stays text, a picture a picture. So it is on pages with a short form for tests, which save their full form. A cell that is
not executed (`#| realdata`, `#| slow` ...) keeps what it has, and a picture that differs by rounding alone is kept, so that the
history doesn't grow. The real photos aren't used."""
import argparse, base64, difflib, html, io, json, os, re, shutil, signal, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from PIL import Image
import readme

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 60                              # seconds that a page may take to be saved without being named
TOLERANCE, DIGIT, NOTHING = .02, .1, 1e-6         # shares of a number; what processors add in another order is wrong by the last
ROUNDING = 2                            # levels of 255 by which a picture may differ and be the same
DIFFERS = 'outputs differ: '           # .ci/gates.py counts the lines that begin so

def files():
    "The files git tracks, and the new ones it does not ignore."
    r = subprocess.run(['git', 'ls-files', '-z', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f'git ls-files: {r.stderr}')
    return sorted(f for f in r.stdout.split('\0') if f and (ROOT/f).is_file())

@contextmanager
def copy_of_tree():
    "A copy of `files()` in a temporary folder, so that nothing can change the checkout that is judged."
    with tempfile.TemporaryDirectory() as d:
        for f in files():
            (Path(d)/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/f, Path(d)/f)
        yield Path(d)

def notebooks(root):
    "The notebooks that nbdev-test looks at, as paths from the root, and those of them that ask not to be run."
    nbs = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if not re.search(r'(^|/)[_.]', p.relative_to(root/'nbs').as_posix())]
    off = [p for p in nbs if any(re.search(r'^skip_exec: *true', readme.as_text(c['source']), re.M) for c in cells_of(p)[:1])]
    return [[p.relative_to(root).as_posix() for p in ps] for ps in (nbs, off)]

def cells_of(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

# What is shown, as text -------------------------------------------------------------------------------------------------

def words_of_html(text):
    "What a reader sees of HTML: a line for each row of a table, each paragraph, each line of text."
    text = re.sub(r'<(style|script)\b.*?</\1>|<!--.*?-->', '', text, flags=re.S)
    text = re.sub(r'</(?:tr|p|div|li|h\d|text|summary|figcaption)>|<br\s*/?>', '\n', re.sub(r'\s+', ' ', text))
    return html.unescape(re.sub(r'<[^>]*>', ' ', text))

def shown(output):
    "One saved output as text: what the page shows of it, as `[picture]` or `[widget]` if it is one."
    if output['output_type'] == 'stream': return readme.as_text(output['text'])
    if output['output_type'] == 'error': return '\n'.join(output['traceback'])
    data = {k: readme.as_text(v) for k,v in output['data'].items() if isinstance(v, (str, list))}
    if any(k.startswith('image/') for k in data): return '[picture]'
    if any('widget' in k for k in output['data']) or re.search('<(?:script|input)', data.get('text/html', '')): return '[widget]'
    if 'text/html' in data: return words_of_html(data['text/html'])
    return data.get('text/markdown', data.get('text/plain', ''))

def said(cell):
    "What a cell has printed and shown, as lines without empty ones. What went to stderr comes first."
    outputs = sorted(cell.get('outputs', []), key=lambda o: o.get('name') != 'stderr')
    lines = '\n'.join(shown(o) for o in outputs).splitlines()
    return [s for l in lines if (s := ' '.join(l.split()))]

def without_warnings(cell):
    "A cell without what it has written to stderr."
    return {**cell, 'outputs': [o for o in cell.get('outputs', []) if o.get('name') != 'stderr']}

def kinds(cell):
    "Which kinds of output a cell has."
    return sorted({l if l in ('[picture]', '[widget]') else '[text]' for l in said(without_warnings(cell))})

# What is the same -------------------------------------------------------------------------------------------------------

# Measured on the machine that the page ran on: a time, also that of a progress bar, a speed, the memory that training needs, an address.
# The library abbreviates units: what a record says in full words is compared.
MEASURED = re.compile(r'\b\d[\d.,]* ?(?:ms|s|min|h|[A-Za-z]+/s)\b|\b\d\d:\d\d\b|\b\d[\d.,]* [kMG]B(?= on )|'
                      r'\b0x[0-9a-f]{6,}|(?<=<ipython-input-)[\w-]+')
NUMBER = re.compile(r'(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:e[-+]?\d\d?(?!\w))?', re.A)
RULE = re.compile(r'[-=─━]{3,}')          # as wide as the column of a table, which is as wide as its numbers

DTYPE = re.compile(r'\bdtype: (?:object|str)\b')          # pandas 2 and 3 name words in different ways

CACHED = re.compile(r'[\d,]+ photos cached, .*; clear_cache\(\) frees them')         # by the first page that reads a set

def plain(line): return DTYPE.sub('dtype: words', RULE.sub('---', MEASURED.sub('~', line.replace('−', '-'))))
def template(line): return NUMBER.sub('#', plain(line))
def numbers(line): return [m[0].replace(',', '') for m in NUMBER.finditer(plain(line))]

def last_digit(number):
    "What one more in the last digit is worth."
    mantissa, _, exponent = number.partition('e')
    return 10.**(int(exponent or 0) - len(mantissa.partition('.')[2]))

def close(a, b):
    "Are two numbers the same, but for how processors round?"
    x, y = float(a), float(b)
    if x == y or not re.search('[.e]', a+b): return x == y
    size, digit = max(abs(x), abs(y)), 1.001*min(last_digit(a), last_digit(b))
    return abs(x-y) <= max(TOLERANCE*size, min(digit, DIGIT*size), NOTHING)

def same(a, b):
    "Do two lines say the same?"
    return template(a) == template(b) and all(map(close, numbers(a), numbers(b)))

def counts(line):
    "The whole numbers of a line, without shares in per cent: what nobody has measured or trained."
    line = plain(line)
    return [m[0] for m in NUMBER.finditer(line) if m[0] and not re.search('[.e]', m[0]) and line[m.end():m.end()+1] != '%']

def aligned(a, b):
    "The lines of `a` and of `b` in order: pairs that are built alike, and (lines, lines) where none are."
    for op,i,j,k,l in difflib.SequenceMatcher(None, [*map(template, a)], [*map(template, b)], autojunk=False).get_opcodes():
        yield from zip(a[i:j], b[k:l], strict=True) if op == 'equal' else [(a[i:j], b[k:l])]

def changed(a, b, measured=True, trained=False):
    """The lines of `a` and of `b` that say something else, marked by - and +; and whether a measure differs, or one did before (`trained`).

    If not `measured`, a measure is no fault, and words below it aren't either: they may follow from it. Whole numbers always count."""
    found = []
    for x,y in aligned(a, b):
        if isinstance(x, list):
            x, y = ([l for l in lines if not CACHED.fullmatch(l)] for lines in (x, y))
            if measured or not trained: found += [*(f'-{l}' for l in x), *(f'+{l}' for l in y)]
        elif not same(x, y):
            only_measures = counts(x) == counts(y)
            trained = trained or only_measures
            if measured or not only_measures: found += [f'-{x}', f'+{y}']
    return found, trained

def drawn(cells):
    "The pictures and widgets of a page, as they are saved."
    return [o['data'] for c in cells for o in c.get('outputs', []) if shown(o) in ('[picture]', '[widget]')]

def pixels(png): return np.asarray(Image.open(io.BytesIO(base64.b64decode(readme.as_text(png)))).convert('RGBA')).astype(int)

def alike(a, b):
    "Do two pictures, as notebooks save them, differ by rounding alone?"
    a, b = pixels(a), pixels(b)
    return a.shape == b.shape and abs(a-b).max() <= ROUNDING

def keep_pictures(old, new):
    "Put the saved pictures of a page's cells back where the fresh ones are the same but for rounding; how many."
    had, kept = {c['id']: c.get('outputs', []) for c in old if 'id' in c}, 0
    for c in new:
        for a,b in zip(had.get(c.get('id'), []), c.get('outputs', [])):
            a, b = a.get('data', {}), b.get('data', {})
            if 'image/png' in a and 'image/png' in b and a['image/png'] != b['image/png'] and alike(a['image/png'], b['image/png']):
                b['image/png'] = a['image/png']
                kept += 1
    return kept

def source_of(cell): return readme.as_text(cell['source'])

def short_form(cells):
    "Is a shorter form of the page run by nbdev-test than by a reader?"
    return any(c['cell_type'] == 'code' and re.search(r"['\"]IN_TEST['\"] (?:not )?in\b", source_of(c)) for c in cells)

def compared(a, b, loose, measured=True, trained=False):
    "`changed` for a saved and a fresh cell; only for the kinds of their outputs if `loose`. Silence on the saved stderr is any."
    if loose or 'varies' in readme.directives(source_of(a))[0]: return changed(kinds(a), kinds(b))[0], trained
    if not any(o.get('name') == 'stderr' for o in a.get('outputs', [])): b = without_warnings(b)
    return changed(said(a), said(b), measured, trained)

def differences(saved, fresh, page, most=10, measured=True):
    "Where a page's cells say something else than what is saved in them; if not `measured`, only what no other processor explains."
    faults, loose, trained = [], short_form(saved), False
    for a,b in zip(saved, fresh, strict=True):
        if a['cell_type'] != 'code': continue
        diff, trained = compared(a, b, loose, measured, trained)
        more = [f'... and {len(diff)-most} lines more'] if len(diff) > most else []
        if diff: faults.append('\n'.join([f"{page}, cell {a.get('id')}: - saved, + fresh", *(f'   {l[:200]}' for l in diff[:most]), *more]))
    return faults

# Two ways to run --------------------------------------------------------------------------------------------------------

def environment(tree, cache):
    "As in CI: no real photos, no full form, a cold cache, and the library of the copy."
    env = {k: v for k,v in os.environ.items() if k not in ('RECON_NB_DATA', 'RECON_NB_FULL')}
    return {**env, 'PYTHONPATH': str(tree), 'RECON_NB_CACHE': str(cache), 'PYTHONUNBUFFERED': '1'}

def failed_in(log):
    "The names of the notebooks that nbdev-test says have failed; None if it has not come to its end."
    m = re.search(r'Tests Failed On The Following Notebooks:\n=+\n((?:\t.*\n?)+)', log)
    if m: return m[1].split()
    return [] if re.search(r'^Success\.$', log, re.M) else None

FAILS = 'fails:'

def execute(tree, pages, env):
    "nbdev-test on these pages, in one go, with outputs saved in `tree`. It is printed as it comes; what was printed."
    log, which = [], '|'.join(re.escape(f'/{p}') for p in pages)
    with subprocess.Popen(['nbdev-test', '--save', '--n-workers', '2', '--path-re', f'(?:{which})$'], cwd=tree, env=env, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors='replace') as p:
        for line in p.stdout:
            print(line, end='', flush=True)
            log.append(line)
    return ''.join(log)

def execute_one(tree, env, limit, page):
    "nbdev-test on one page, with its outputs saved and cleaned in `tree`. Empty, or why not."
    cmd = f'nbdev-test --save --n-workers 0 {page} && nbdev-clean --fname {page}'
    p = subprocess.Popen(cmd, shell=True, cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, errors='replace', start_new_session=True)
    try: out, _ = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)                   # with the processes that the page has started
        p.communicate()
        return f'takes over {limit} s'
    return '' if p.returncode == 0 else '\n'.join([FAILS, *out.strip().splitlines()[-15:]])

def compare(pages, strict=False):
    "Execute these pages and print what they say else than before; the exit status. Measures alone are a fault only if `strict`."
    with copy_of_tree() as tree, tempfile.TemporaryDirectory() as cache:
        saved = {p: cells_of(tree/p) for p in pages}
        failed = failed_in(execute(tree, pages, environment(tree, cache)))
        found = {p: differences(saved[p], cells_of(tree/p), p) for p in pages}
        worded = {p: strict or differences(saved[p], cells_of(tree/p), p, measured=False) for p in pages}
    for fault in [f for fs in found.values() for f in fs]: print(fault)
    stale = [p for p,faults in found.items() if faults and worded[p]]
    for p in found:
        if found[p] and p not in stale: print(f'only measures differ, or words that may follow from them: {p}')
    for p in stale: print(f'{DIFFERS}{p}')
    if stale:
        print('To mend it, save what the pages say now; or, if a cell says something else each time or on each machine, mark it '
              f"`#| varies the reason`:\n  python .ci/pages.py --save {' '.join(stale)}")
    if failed != []: print(f"not compared, for they failed: {'all' if failed is None else ', '.join(failed)}")
    print(f'{len(pages)} pages executed; the outputs of {len(stale)} differ from the saved ones')
    return int(bool(stale) or failed != [])

def save(pages, limit):
    "Execute pages, each in a process of its own, and save them in the checkout: without a limit all, else those that differ."
    with copy_of_tree() as tree, tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(2) as pool:
        short = [p for p in pages if short_form(cells_of(tree/p))]
        left = dict.fromkeys(short, 'has a short form for tests; nbs/house_rules.ipynb says how its full form is saved')
        todo, wrote = [p for p in pages if p not in short], []
        before = {p: (tree/p).read_bytes() for p in todo}
        for p,why in zip(todo, pool.map(partial(execute_one, tree, environment(tree, cache), limit), todo), strict=True):
            page = json.loads((tree/p).read_text(encoding='utf-8'))
            old, new = json.loads(before[p])['cells'], page['cells']
            if keep_pictures(old, new):
                (tree/p).write_text(json.dumps(page, indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')
            stale = not limit or differences(old, new, p)
            if not why and stale and (ROOT/p).read_bytes() != before[p]: why = 'was edited meanwhile'
            if not why and not stale and drawn(old) != drawn(new): why = 'says what it said, and draws its pictures or widgets otherwise'
            if why: left[p] = why
            elif stale:
                shutil.copy2(tree/p, ROOT/p)
                wrote.append(p)
                print(f'saved {p}', flush=True)
    for p,why in left.items(): print(f'not saved: {p} {why}')
    if {*readme.PAGES.values()} & {*wrote}: readme.write(ROOT)
    print(f'{len(pages)} pages, {len(wrote)} saved, {len(left)} left out; to save one all the same: python .ci/pages.py --save PAGE')
    return int(any(why.startswith(FAILS) for why in left.values()))

def asked_for(names):
    "Pages given by name, as paths from the root; all of them if there are none."
    known, off = notebooks(ROOT)
    wanted = [Path(os.path.relpath(Path(n).resolve(), ROOT)).as_posix() for n in names]
    unknown = [n for n in wanted if n not in known]
    if unknown: raise SystemExit(f"{', '.join(unknown)}: no such page. Give paths: nbs/00_core.ipynb")
    return wanted or [p for p in known if p not in off]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('pages', nargs='*', metavar='PAGE', help='a notebook, as nbs/00_core.ipynb; all if none is given')
    p.add_argument('--save', action='store_true', help='save the outputs in the checkout')
    p.add_argument('--strict', action='store_true', help='measures are a fault, too: on the machine that saved the pages')
    p.add_argument('--limit', type=float, default=LIMIT, help='seconds that a page may take if none is named (%(default)s)')
    a = p.parse_args()
    pages = asked_for(a.pages)
    if not a.save: return compare(pages, a.strict)
    return save(pages, limit=None if a.pages else a.limit)

if __name__ == '__main__': sys.exit(main())
