"""The documentation site without Quarto: `python .ci/docs.py [OUT]` writes it to `_docs`, to be opened from there, offline.

nbdev processes the pages as it does for Quarto, smalldocs lays them out. Mended on the way: pages are named as nbdev links them,
formulas become MathML, no font or script comes from another host, search works from a folder too, each public name gets a table,
each figure an alternative text.
`python .ci/docs.py --sidebar` writes `nbs/sidebar.yml`, which this build and Quarto share. `--check` looks for faults in a built site."""
import argparse, ast, dataclasses, hashlib, html, inspect, json, os, re, shutil, subprocess, sys, tempfile
from functools import cached_property, partial
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
ORDER = {   # pages that are not named here follow theirs, in the order of their names
    'Start': ['index', 'start/the_idea', 'tutorials/first_run', 'start/the_answer_so_far', 'start/see_it_beat_scratch',
              'start/try_your_photos', 'start/paint_your_photo'],
    'Tutorials': ['tutorials/paper_walkthrough', 'tutorials/paper_pictures', 'tutorials/why_the_baseline_copies',
                  'tutorials/table_3', 'tutorials/does_it_help', 'tutorials/another_target', 'tutorials/your_photos'],
    'How-to': ['how_to/own_photos', 'how_to/probe_your_photos', 'how_to/resume', 'how_to/read_your_log', 'how_to/choose_an_epoch',
               'how_to/several_gpus', 'how_to/a_backbone', 'how_to/encoder_elsewhere', 'how_to/log_elsewhere',
               'how_to/add_a_data_set', 'how_to/add_a_target', 'how_to/add_a_mask', 'how_to/add_a_loss', 'how_to/add_an_encoder'],
    'Explanations': ['explanations/which_numbers',
                     'explanations/where_the_paper_is_silent', 'explanations/larger_inputs', 'explanations/one_instance',
                     'explanations/adversarial_losses', 'explanations/stability',
                     'explanations/detection_and_segmentation', 'explanations/stl10_mystery',
                     'explanations/why_it_failed', 'explanations/beat_scratch', 'explanations/which_change_mattered',
                     'explanations/papers_own_pretext',
                     'explanations/longer_and_second_round', 'explanations/how_fair_is_it', 'explanations/photos_nobody_tuned_for',
                     'explanations/another_kind', 'explanations/does_the_advice_hold', 'explanations/resnet18',
                     'explanations/where_the_field_went', 'explanations/broken_on_purpose',
                     'explanations/glossary', 'explanations/bibliography'],
    'The library': ['map', 'api']}
FOLDERS = dict(start='Start', tutorials='Tutorials', how_to='How-to', explanations='Explanations')
LAST = ['contributing', 'house_rules']
BANDS = {0: 'Shared by all', 10: 'Images', 20: 'Masks, networks, losses, targets', 49: 'Training', 60: 'Use a trained run',
         70: 'Does it help?', 80: 'Figures, widgets, answers', 89: 'The shell'}
LIMITS = dict(page_bytes=3_000_000, path_words=700, path_columns=88)
PATH = ORDER['Start'][1:6]         # the short pages that are read one after the other; what follows is an extra

# ---- the sidebar

def sources(nbs):
    "The pages' names: no suffix, relative to `nbs`; folders and files that begin with _ or . are none."
    rel = [p.relative_to(nbs) for p in nbs.rglob('*.ipynb')]
    return sorted(p.with_suffix('').as_posix() for p in rel if not any(x[0] in '._' for x in p.parts))

def groups(names):
    "Group -> pages, and for the library band -> pages: every page once."
    placed, out = set(LAST), {}
    for group,first in ORDER.items():
        rest = [n for n in names if FOLDERS.get(n.split('/')[0] if '/' in n else '', 'The library') == group and not re.match(r'\d\d_', n)]
        out[group] = [n for n in dict.fromkeys(first + rest) if n in names and n not in placed]
        placed |= set(out[group])
    bands = {b: [n for n in names if re.match(r'\d\d_', n) and max(x for x in BANDS if x <= int(n[:2])) == b] for b in BANDS}
    return out, {BANDS[b]: ns for b,ns in bands.items() if ns}, [n for n in LAST if n in names]

def sidebar(nbs):
    "The sidebar as Quarto and smalldocs read it."
    groups_, bands, last = groups(sources(nbs))
    def pages(names): return [f'{n}.ipynb' for n in names]
    contents = [dict(section=g, contents=pages(ns)) for g,ns in groups_.items() if ns or g == 'The library']
    contents[-1]['contents'] += [dict(section=b, contents=pages(ns)) for b,ns in bands.items()]
    return dict(website=dict(sidebar=dict(contents=contents + pages(last))))

def sidebar_text(nbs):
    import yaml
    return '# Written by `python .ci/docs.py --sidebar`.\n' + yaml.safe_dump(sidebar(nbs), sort_keys=False)

# ---- nbdev's half: from notebooks to notebooks with outputs for the docs

try: from fastcore.docments import DocmentText, MarkdownRenderer
except ImportError: MarkdownRenderer = object                     # nothing but the rendering of tables needs it

def plain(x):
    "An annotation or a default as a reader would write it."
    if isinstance(x, str): s = x
    elif isinstance(x, float): s = f'{x:.6g}'
    elif isinstance(x, type) or hasattr(x, '__origin__'): s = inspect.formatannotation(x)
    else: s = repr(x)
    s = re.sub(r"<(?:function|class) '?([\w.]+).*?>", r'\1', s)
    return s if s.startswith(("'", '"')) else re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])', '', s)

def source_of(x):
    try: return inspect.getsource(x)
    except (OSError, TypeError): return ''

class ApiTable(MarkdownRenderer):
    "nbdev's `show_doc`, as a table: name, type with its shape, default, meaning."
    def __init__(self, sym, name=None, title_level=3, **kwargs):
        first = next(iter(inspect.signature(sym).parameters.values()), None) if inspect.isfunction(sym) else None
        owner = getattr(first, 'annotation', None) if first is not None and first.name in ('self', 'cls') else None
        if name is None and inspect.isclass(owner): name = f'{owner.__name__}.{sym.__name__}'   # a patched method
        super().__init__(sym, name=name, title_level=title_level, **kwargs)

    def _rows(self):
        "Each argument, and what is returned: name, type, default, meaning."
        if inspect.isclass(self.sym) and issubclass(self.sym, tuple):
            yield from self._fields()
            return
        dm = self.dm.dm if isinstance(self.dm, DocmentText) else {}
        said = {k: d['docment'] for k,d in dm.items() if d.get('docment') not in (None, inspect._empty)}
        rest = next((p.name for p in self.sig.parameters.values() if p.kind is p.VAR_KEYWORD), None) if self.sig else None
        phrase = re.escape(said.get('return', ''))
        if rest in dm and rest not in said and phrase and re.search(rf'\*\*{rest}\b.*# *{phrase}', source_of(self.sym)):
            said[rest] = said.pop('return')                       # docments gives the phrase behind **kwargs to the result
        if dataclasses.is_dataclass(self.sym):                   # a field may carry its meaning with it, as those of `GANConfig` do
            said = {f.name: f.metadata['doc'] for f in dataclasses.fields(self.sym) if 'doc' in f.metadata} | said
        for k,d in dm.items():
            if k in ('self', 'cls') or (k == 'return' and inspect.isclass(self.sym)): continue
            anno, default = d.get('anno', inspect._empty), d.get('default', inspect._empty)
            none = anno is inspect._empty or (anno in (None, type(None)) and k != 'return')
            if isinstance(default, str): default = repr(default)
            default = '' if default is inspect._empty else plain(default)
            yield self._row(k, '' if none else plain(anno), default, said.get(k, ''))

    def _row(self, k, anno, default, meaning):
        cells = [f'`{x}`'.replace('|', '\\|') if x else '' for x in (anno, default)]
        parts = re.split('(`[^`]*`)', meaning)
        words = ''.join(w if i % 2 else w.replace('<', '&lt;') for i,w in enumerate(parts))     # <class> is no tag
        return ('*returns*' if k == 'return' else f'`{k}`'), *cells, words.replace('|', '\\|').replace('\n', ' ')

    def _fields(self):
        "The fields of a named tuple, which has no signature of its own."
        for line in source_of(self.sym).splitlines()[1:]:
            if re.match(r'\s*(def|@)', line): return
            m = re.match(r'\s+(\w+)\s*:\s*([^#=]+?)\s*(?:=\s*([^#]+?)\s*)?(?:#\s*(.*))?$', line)
            if m: yield self._row(m[1], m[2], m[3] or '', m[4] or '')

    def _call(self):
        "How it is called: names, the star after which they must be written, `=` where there is a default."
        if self.sig is None: return '(...)'
        out, ps = [], [p for k,p in self.sig.parameters.items() if k not in ('self', 'cls')]
        for i,p in enumerate(ps):
            starred = any(q.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL) for q in ps[:i])
            if p.kind is p.KEYWORD_ONLY and not starred: out.append('*')
            stars = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
            out.append(stars + p.name + ('=...' if p.default is not p.empty else ''))
        return f"({', '.join(out)})"

    def _members(self):
        "A class's documented methods and properties that stand in its body; those patched in later have entries of their own."
        if not inspect.isclass(self.sym): return
        for k,v in vars(self.sym).items():
            f = v.fget if isinstance(v, property) else getattr(v, '__func__', v)
            if k.startswith('_') or not inspect.isfunction(f) or not f.__doc__: continue
            if '.' not in getattr(f.__code__, 'co_qualname', f.__qualname__): continue          # patched in
            yield type(self)(f, name=f'{self.nm}.{k}', title_level=self.title_level+1), isinstance(v, property)

    def _repr_markdown_(self, prop=False):
        from nbdev.doclinks import NbdevLookup
        src, rows = NbdevLookup().code(self.fn), [r for r in self._rows() if r[0] != '*returns*' or r[1] or r[3]]
        link = f'[source]({src}){{.api-source}}\n\n' if src else ''
        text = f"{'#'*self.title_level} {self.nm}\n\n{link}```python\n{self.nm}{'' if prop else self._call()}\n```\n\n{self.docs or ''}\n\n"
        head = ['', 'type', 'default', 'meaning']
        keep = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
        if rows: text += '\n'.join(f"| {' | '.join(r[i] for i in keep)} |" for r in [head, ['---']*4, *rows])
        return f'::: {{.api}}\n\n{text}\n\n:::\n\n' + ''.join(m._repr_markdown_(p) for m,p in self._members())

def process(root, work):
    "Let nbdev process the pages in a copy, so that the checkout stays as it is. Returns the folder of processed pages."
    skip = shutil.ignore_patterns('.*', '_*.ipynb', '__pycache__', 'runs')
    for d in ('nbs', 'recon_nb'): shutil.copytree(root/d, work/d, ignore=skip)
    for f in ('settings.ini', 'setup.py'): shutil.copy(root/f, work/f)
    text = (root/'pyproject.toml').read_text(encoding='utf-8').replace('[tool.nbdev]', '[tool.nbdev]\nrenderer = "docs.ApiTable"')
    (work/'pyproject.toml').write_text(text, encoding='utf-8')
    code = 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=0, force=True)'    # one process imports torch once
    path = os.pathsep.join([str(work), str(root/'.ci')])
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=work, env={**os.environ, 'PYTHONPATH': path}, text=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lost = sorted(set(sources(work/'nbs')) - set(sources(work/'_proc')))
    where = lost[0] if lost else 'the pages'
    if r.returncode or lost: raise ValueError(f'nbdev stopped at {where} ({len(lost)} left):\n{r.stdout[-1500:]}')
    return work/'_proc'

def edit(path, f):
    "Change a notebook in place."
    nb = json.loads(path.read_text(encoding='utf-8'))
    f(nb)
    path.write_text(json.dumps(nb), encoding='utf-8')

def headings(md):
    "The headings of a markdown cell, without markup."
    found = re.findall(r'^#{1,4}\s+(.+?)\s*(?:\{.*\})?$', md, re.M)
    return [re.sub(r'!?\[([^\]]*)\]\([^)]*\)|[*_`$\\]', lambda m: m[1] or '', h).strip() for h in found]

FIG_ALT = re.compile(r'^#\|\s*fig-alt:\s*(.*)$', re.M)

def unquote_yaml(text):
    "A directive's value without the quotes around it."
    text = text.strip()
    quoted = len(text) > 1 and text[0] in '"\'' and text[-1] == text[0]
    return text[1:-1].replace('\\"', '"') if quoted else text

def with_alt(source, drawn, where):
    "A code cell with a `#| fig-alt` that JSON can read: its own, or, if it has drawn something, the name of its section."
    m = FIG_ALT.search(source)
    text = unquote_yaml(m[1]) if m else ''
    line = f'#| fig-alt: {json.dumps(text or f"Figure: {where}", ensure_ascii=False)}'
    if m: return source.replace(m[0], line)
    return f'{line}\n{source}' if where and drawn else source

def describe(nb):
    "Give each picture that a code cell left an alternative text."
    where = ''
    for c in nb['cells']:
        source = ''.join(c['source'])
        title = re.search(r'^title:\s*(.+)$', source, re.M)
        if c['cell_type'] == 'markdown': where = [where, *headings(source)][-1]
        if c['cell_type'] == 'raw' and title: where = title[1].strip(' "\'')
        if c['cell_type'] != 'code': continue
        drawn = any(k.startswith('image/') for o in c.get('outputs', []) for k in o.get('data', {}))
        c['source'] = with_alt(source, drawn, where)

# ---- the renderer's half: from those to a folder of pages

FAULT = "smalldocs has changed: {} is not where it was; look at .ci/docs.py"

def swap(text, old, new):
    if old not in text: raise ValueError(FAULT.format(repr(old[:60])))
    return text.replace(old, new)

def make_site(proc, out):
    "smalldocs' site, with the names that nbdev gives its pages."
    from smalldocs import config, site
    class Site(site.Site):
        def read(self, src):
            page = super().read(src)
            page.out = page.src.with_name(page.front.pop('output-file', page.out.name))
            return page
        @cached_property
        def by_out(self): return {p.out: p for p in self.pages.values()}
        def find_page(self, target): return super().find_page(target) or self.by_out.get(target)
        def resolve(self, href, page, record=True):
            if not href.startswith(base): return super().resolve(href, page, record)
            href = '/' + (href[len(base):].lstrip('/') or 'index.html')
            return super().resolve(href, page, record) + ('~nbdev' if '#' in href else '')
    project = config.load(proc)
    base = project.website['site-url']
    project.project['output-dir'] = str(out)
    return Site(project, quiet=True)

def to_mathml(text):
    "Formulas as MathML, which browsers draw without a script."
    from latex2mathml.converter import convert
    def one(m):
        tex = html.unescape(m[3])
        try: mml = convert(tex, display='block' if m[1] == 'display' else 'inline')
        except Exception as e: raise ValueError(f'latex2mathml does not understand {tex!r}: {type(e).__name__} {e}') from e
        note = f'<annotation encoding="application/x-tex">{html.escape(tex)}</annotation>'
        mml = re.sub(r'^(<math[^>]*>)(.*)(</math>)$', lambda x: f'{x[1]}<semantics>{x[2]}{note}</semantics>{x[3]}', mml, flags=re.S)
        return f'<span class="math {m[1]}">{mml}</span>'
    return re.sub(r'<span class="math (inline|display)">\\([(\[])(.*?)\\[)\]]</span>', one, text, flags=re.S)

def finish_links(pages):
    "nbdev links any name that it knows: where the page has no anchor for it, lead to what holds it, or to the page."
    texts = {p.resolve(): p.read_text(encoding='utf-8') for p in pages}
    ids = {p: set(re.findall(r' id="([^"]+)"', text)) for p,text in texts.items()}
    def mend(page, m):
        there = ids.get((page.parent/m[1]).resolve() if m[1] else page, set())
        anchor = next((a for a in (m[2], m[2].rpartition('.')[0]) if a in there), None)
        return f'href="{m[1]}{"#" + anchor if anchor else ""}"'
    for page,text in texts.items():
        page.write_text(re.sub(r'href="([^"#]*)#([^"]*)~nbdev"', partial(mend, page), text), encoding='utf-8')

SKIP = '<a class="skip-link" href="#quarto-document-content">Skip to the text</a>'

def finish(page):
    "What smalldocs leaves to mend in a page."
    text = page.read_text(encoding='utf-8')
    text = re.sub(r'<(?:link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?', '', to_mathml(text))
    text = re.sub(r'(<body[^>]*>)', rf'\1{SKIP}', text, count=1)
    text = swap(text, '<main ', '<main tabindex="-1" ')
    text = re.sub(r'(<i\b[^>]*?) role="img"', r'\1 aria-hidden="true"', text)
    text = text.replace(' role="navigation" aria-expanded', ' role="button" aria-expanded')
    page.write_text(text, encoding='utf-8')

def finish_assets(out):
    "Search without `fetch`, which browsers refuse to a page opened from a folder; no fonts from another host."
    libs = out/'site_libs'
    index = (out/'search.json').read_text(encoding='utf-8')
    (libs/'search.js').write_text(f'window.searchIndex = {re.sub("</", "<" + chr(92) + "/", index)};', encoding='utf-8')
    js = (libs/'smalldocs.js').read_text(encoding='utf-8')
    js = swap(js, 'const r = await fetch(offset + "search.json");',
              'await new Promise((ok, no) => { const s = document.createElement("script"); '
              's.src = offset + "site_libs/search.js"; s.onload = ok; s.onerror = no; document.head.append(s); });')
    (libs/'smalldocs.js').write_text(swap(js, 'index = await r.json();', 'index = window.searchIndex;'), encoding='utf-8')
    for css in libs.rglob('*.css'):
        text = css.read_text(encoding='utf-8')
        css.write_text(re.sub(r'@import\s+url\((["\']?)https?:.*?\1\)\s*;', '', text), encoding='utf-8')

def render(proc, out):
    "Lay out the processed pages into `out`."
    for p in proc.rglob('*.ipynb'): edit(p, describe)
    (proc/'sidebar.yml').write_text(sidebar_text(proc), encoding='utf-8')
    site = make_site(proc, out)
    site.build()
    pages = list(out.rglob('*.html'))
    for page in pages: finish(page)
    finish_links(pages)
    finish_assets(out)
    (out/'.nojekyll').touch()
    return [w for w in site.warnings if not re.search('output-file|keep-md|commonmark|execute|html-math-method|format-links', w)]

# ---- build, once for the same pages

def fingerprint(root):
    "Changes with whatever the site is made of."
    import smalldocs
    h = hashlib.sha256(smalldocs.__version__.encode())
    files = [*(root/'nbs').rglob('*'), *(root/'recon_nb').glob('*.py'), root/'pyproject.toml', root/'settings.ini', Path(__file__)]
    for p in sorted(files):
        left_out = any(x.startswith('.ipynb') or x == 'runs' for x in p.parts)
        if p.is_file() and not left_out: h.update(str(p.relative_to(root)).encode() + b'\0' + p.read_bytes())
    return h.hexdigest()

def build(root=ROOT, out=None, force=False):
    "Build the site, unless it is there and nothing has changed. Returns the renderer's warnings."
    out, mark = Path(out or root/'_docs').resolve(), fingerprint(root)
    stamp = out/'.built'
    old = json.loads(stamp.read_text()) if stamp.exists() and not force else {}
    if old.get('of') == mark: return old['warnings']
    if out.exists() and any(out.iterdir()) and not (out/'site_libs').exists():
        raise ValueError(f'{out} is not empty and holds no site: name another folder')
    with tempfile.TemporaryDirectory() as d:
        warnings = render(process(root, Path(d)), out)
    stamp.write_text(json.dumps(dict(of=mark, warnings=warnings)), encoding='utf-8')
    return warnings

# ---- the checks

class Page(HTMLParser):
    "What a page holds: anchors, links, what it fetches to be read, pictures without words."
    fetched = dict(script='src', img='src', iframe='src', source='src', video='src', audio='src', embed='src', object='data', input='src')
    def __init__(self, text):
        super().__init__()
        self.ids, self.twice, self.links, self.needs, self.mute, self.title, self.menu, self._in = set(), [], [], [], [], '', [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id') in self.ids: self.twice.append(a['id'])
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k) and (k == 'id' or tag == 'a')}
        if tag == 'a' and a.get('href'):
            self.links.append(a['href'])
            if 'sidebar-link' in (a.get('class') or ''): self.menu.append(a['href'])
        if tag == 'link' and a.get('href') and 'canonical' not in (a.get('rel') or ''): self.needs.append(a['href'])
        if a.get(self.fetched.get(tag, '')): self.needs.append(a[self.fetched[tag]])
        if a.get('srcset'): self.needs += [x.split()[0] for x in a['srcset'].split(',')]
        if tag == 'img' and not (a.get('alt') or '').strip(): self.mute.append((a.get('src') or '')[:60])
        if a.get('style'): self.needs += css_urls(a['style'])
        if tag in ('title', 'style', 'script'): self._in.append(tag)
    def handle_endtag(self, tag):
        if self._in and self._in[-1] == tag: self._in.pop()
    def handle_data(self, data):
        if not self._in: return
        if self._in[-1] == 'title': self.title += data
        elif self._in[-1] == 'style': self.needs += css_urls(data)
        else: self.needs += re.findall(r'(?:fetch|import|importScripts|\.src\s*=)\s*\(?\s*["\'](https?://[^"\']+)', data)

def css_urls(css): return [m[2] for m in re.finditer(r'(?:url\(|@import\s+(?!url))\s*(["\']?)([^"\')\s;]+)\1', css) if m[2]]
def elsewhere(url): return bool(re.match(r'(?:https?:)?//', url))

def documented(root, pages):
    "Public names that have no entry of their own on their module's page, or none in the API index."
    index, faults = pages.get('api.html'), []
    if index is None: return ['there is no api.html']
    for f in sorted((root/'recon_nb').glob('*.py')):
        if f.stem.startswith('_'): continue
        top, page = ast.parse(f.read_text(encoding='utf-8')).body, pages.get(f'{f.stem}.html')
        lists = [n.value for n in top if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
        names = [x for n in lists for x in ast.literal_eval(n)]
        code = {n.name for n in top if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        own = page.ids if page else set()
        faults += [f'{f.stem}.{n} is missing from the API index' for n in names if f'{f.stem}.{n}' not in index.ids]
        faults += [f'{f.stem}.html says nothing about {n}' for n in names if n in code and n.lower() not in own]
    return faults

def dead_link(out, files, pages, name, url):
    "What is wrong with a link of a page, or None."
    u = urlsplit(url)
    if u.scheme or u.netloc: return None
    target = os.path.normpath(PurePosixPath(name).parent/unquote(u.path)) if u.path else name
    if (out/target).is_dir(): target = f'{target}/index.html'.removeprefix('./')
    if target not in files: return f'{name}: nothing is at {url}'
    if u.fragment and target in pages and unquote(u.fragment) not in pages[target].ids: return f'{name}: no anchor at {url}'

def page_faults(out, files, pages, name):
    "The faults of one page."
    page, size = pages[name], files[name].stat().st_size
    faults = [f'{name} has {size/1e6:.1f} MB; allowed 3'] * (size > LIMITS['page_bytes'])
    if not page.title.strip(): faults.append(f'{name} has no title')
    faults += [f'{name} has two things called #{i}' for i in page.twice]
    faults += [f'{name}: a picture without alternative text: {s}' for s in page.mute]
    faults += [f'{name} needs another host: {u}' for u in page.needs if elsewhere(u)]
    links = [dead_link(out, files, pages, name, url) for url in [*page.links, *page.needs]]
    return faults + [x for x in links if x]

def check(out, root=ROOT):
    "The faults of a built site, as sentences."
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob('*')) if p.is_file()}
    texts = {n: p.read_text(encoding='utf-8') for n,p in files.items() if n.endswith(('.html', '.css'))}
    pages = {n: Page(text) for n,text in texts.items() if n.endswith('.html')}
    faults = [x for n in pages for x in page_faults(out, files, pages, n)]
    faults += [f'{n} needs another host: {u}' for n,text in texts.items() if n.endswith('.css') for u in css_urls(text) if elsewhere(u)]
    menu = {os.path.normpath(u) for u in pages['index.html'].menu} if 'index.html' in pages else set()
    faults += [f'{n} is not in the sidebar' for n in pages if n not in menu and n != '404.html']
    faults += [f'{n}: a link is shown as it is written: {m[0]}' for n in pages
               for m in re.finditer(r'\]\([^)\s<]*\.(?:ipynb|html)[^)\s<]*\)', texts[n])]
    faults += [f'{n}: an object is shown by its address: {html.unescape(m[0])}' for n in pages
               for m in re.finditer(r'&lt;[^&<]{0,80}(?:&lt;lambda&gt;| at 0x[0-9a-f]+)[^&<]{0,40}', texts[n])]
    return list(dict.fromkeys(faults + documented(root, pages)))

COLAB = """#| hide
#| net
# On Colab: fetch the repository, install it, leave out the cells that need the real photos.
if 'google.colab' in str(get_ipython()):
    !git clone -q --depth 1 https://github.com/recon-nb/recon_nb /content/recon_nb && pip install -q /content/recon_nb
    %cd -q /content/recon_nb/nbs/tutorials
    get_ipython().input_transformers_cleanup.append(lambda lines: [] if '#| realdata\\n' in lines else lines)"""
COLAB_AT = 'https://colab.research.google.com/github/recon-nb/recon_nb/blob/main/nbs/{}.ipynb'

def no_colab(root=ROOT):
    "Tutorials that lack the link to Colab below their title, or the first cell that makes them run there, as the rules show it."
    page = root/'nbs/house_rules.ipynb'
    rules = json.loads(page.read_text(encoding='utf-8'))['cells'] if page.exists() else []
    shown = any(COLAB in ''.join(c['source']) for c in rules)
    faults = [] if shown else ['nbs/house_rules.ipynb does not show the cell for Colab as .ci/docs.py has it']
    for n in sources(root/'nbs'):
        if not n.startswith('tutorials/'): continue
        cells = cells_of(root, n)
        prose, code = ([''.join(c['source']).strip() for c in cells if c['cell_type'] == k] for k in ('markdown', 'code'))
        top = [l for p in prose[:2] for l in p.splitlines()]
        if f'[Open in Colab]({COLAB_AT.format(n)})' not in top: faults.append(f'{n} has no link to Colab below its title')
        if code[:1] != [COLAB]: faults.append(f'{n}: its first code cell is not the one for Colab, which nbs/house_rules.ipynb shows')
    return faults

def cells_of(root, name): return json.loads((root/f'nbs/{name}.ipynb').read_text(encoding='utf-8'))['cells']

def in_order(nbs):
    "Every page in the order of the sidebar, which is that of the arrows at the pages' feet."
    groups_, bands, last = groups(sources(nbs))
    return [n for ns in [*groups_.values(), *bands.values(), last] for n in ns]

def words(cells):
    "How many words of prose: neither code nor formulas nor addresses."
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    other = r'```.*?```|\$\$.*?\$\$|`[^`\n]*`|\$[^$\n]+\$|\]\([^)]*\)'
    return len(re.findall(r'[^\W\d_][\w’\'-]*', re.sub(other, ' ', text, flags=re.S)))

def wide_code(cells):
    "Lines of shown code that the column would cut."
    shown = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    lines = [l for source in shown if not re.search(r'^#\|\s*hide\b', source, re.M) for l in source.splitlines()]
    return [l for l in lines if len(l) > LIMITS['path_columns'] and not l.startswith('#|')]

NEXT = re.compile(r'^#+ Next\b.*$', re.M)

def leads_to(name, cells):
    "The words and the page of the first link below a page's heading Next; None if it has no such heading."
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    if not (heading := NEXT.search(text)): return None
    m = re.search(r'\[([^\]]+)\]\(([^)]+)\)', text[heading.end():])
    if not m: return '', ''
    target = m[2].split('#')[0].removesuffix('.ipynb')
    return m[1], target if ':' in target else os.path.normpath(PurePosixPath(name).parent/target)

def built(name): return re.sub(r'^\d\d_', '', name)       # a page of the library is published under its module's name

def arrow(out, name):
    "The page that the arrow at the foot of a built page leads to."
    text = (out/f'{built(name)}.html').read_text(encoding='utf-8')
    m = re.search(r'nav-page-next">\s*<a href="([^"#]+)\.html"', text)
    return os.path.normpath(PurePosixPath(name).parent/m[1]) if m else ''

def what_is_next(root=ROOT, out=None):
    "Pages whose Next is another page than that of the arrow at their foot, or calls it by another name."
    order, faults = in_order(root/'nbs'), []
    for n,after in zip(order, [*order[1:], ''], strict=True):
        if not (there := leads_to(n, cells_of(root, n))): continue
        said, target = there
        if target != after:
            faults.append(f'{n}: Next leads to {target or "nothing"}; the sidebar goes on with {after or "nothing"} (elsewhere: See also)')
        elif said != (title := page_title(root, after)): faults.append(f'{n}: Next calls {after} {said!r}; its title is {title!r}')
        if out and (there := arrow(out, n)) != built(after):
            faults.append(f'{n}: the arrow at its foot leads to {there or "nothing"}, not to {after}')
    return faults

BY_FILE = re.compile(r'\[[^\]]*\b\d\d_[a-z]\w*`?\]\(([^)#]+)\.ipynb')

def called_by_file(root=ROOT):
    "Links to pages of the library that give the name of the file, which no reader sees in the sidebar."
    prose = [(n, ''.join(c['source'])) for n in in_order(root/'nbs') for c in cells_of(root, n) if c['cell_type'] == 'markdown']
    return [f'{n}: a link calls {m[1]}.ipynb by its file; give the title of the page' for n,text in prose for m in BY_FILE.finditer(text)]

def first_path(root=ROOT, path=PATH):
    "The faults of the short pages at the beginning: each says what is next, and stays short."
    order, faults = in_order(root/'nbs'), []
    for n in path:
        if n not in order:
            faults.append(f'{n}, a page of the first path, is missing')
            continue
        cells = cells_of(root, n)
        end = next((''.join(c['source']) for c in reversed(cells) if c['cell_type'] == 'markdown'), '')
        if not re.search(r'^## Next\n(?!.*^#)', end, re.M | re.S): faults.append(f'{n} does not end with what is next')
        if (w := words(cells)) > LIMITS['path_words']: faults.append(f"{n} has {w} words; allowed {LIMITS['path_words']}")
        faults += [f"{n}: a line of code has more than {LIMITS['path_columns']} columns: {l[:60]}..." for l in wide_code(cells)]
    return faults

def page_title(root, name):
    "The title of a page; empty if it has none."
    return next((h for c in cells_of(root, name) if c['cell_type'] == 'markdown' for h in headings(''.join(c['source']))), '')

def stale_sidebar(root=ROOT):
    "Whether nbs/sidebar.yml is not what `--sidebar` would write."
    f = root/'nbs/sidebar.yml'
    if f.exists() and f.read_text(encoding='utf-8') == sidebar_text(root/'nbs'): return []
    return ['nbs/sidebar.yml is out of date: run python .ci/docs.py --sidebar']

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', nargs='?', type=Path, default=ROOT/'_docs', help='the folder to write; default _docs')
    p.add_argument('--sidebar', action='store_true', help='write nbs/sidebar.yml and nothing else')
    p.add_argument('--check', action='store_true', help='then look for faults; exit status 1 if there are any')
    p.add_argument('--force', action='store_true', help='build also if nothing has changed')
    a = p.parse_args()
    if a.sidebar:
        (ROOT/'nbs/sidebar.yml').write_text(sidebar_text(ROOT/'nbs'), encoding='utf-8')
        return print('nbs/sidebar.yml')
    try: warnings = build(ROOT, a.out, a.force)
    except (ValueError, OSError) as e:
        print(e, file=sys.stderr)
        return 1
    print(*(f'warning: {w}' for w in warnings), sep='\n', end='\n' if warnings else '')
    faults = check(a.out) + what_is_next(out=a.out) + called_by_file() + first_path() if a.check else []
    print(*faults, f'{a.out}/index.html', sep='\n')
    return bool(faults)

if __name__ == '__main__': sys.exit(main())
