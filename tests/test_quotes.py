"""What the pages quote from the paper stands in it.

The paper's text isn't here; `fixtures/quotations.txt` has a checksum of each quotation that was found in it. With the text of the paper,
`python tests/test_quotes.py PAPER.txt` writes the file anew, and names what it does not find. Left out of a quotation: `[...]`; formulas are
not compared."""
import hashlib, json, re, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KNOWN = ROOT/'tests/fixtures/quotations.txt'
QUOTE = re.compile(r'\*["“]([^*]+?)["”]\*')
SOURCE = re.compile(r'\s*\((?:§|eq\.|Fig\.|Table)')


def words(text): return re.sub(r'[^a-z0-9]+', ' ', text.lower()).strip()


def quotations(text):
    "What a page's text gives as the paper's words: an italic quotation in a block of its own, or one with its place in the paper."
    for m in QUOTE.finditer(text):
        line = text[text.rfind('\n', 0, m.start())+1:m.start()]
        if line.startswith('>') or SOURCE.match(text, m.end()): yield m[1]


def parts(quotation):
    "The words of a quotation, between what is left out."
    found = re.split(r'\[[^\]]*\]|\.\.\.|\$[^$]*\$', quotation)
    return [words(p) for p in found if words(p)]


def checksum(part): return hashlib.sha256(part.encode()).hexdigest()[:16]


def quoted():
    "(page, part) of all pages."
    for page in sorted((ROOT/'nbs').rglob('*.ipynb')):
        if any(p[0] in '._' for p in page.relative_to(ROOT/'nbs').parts): continue
        for cell in json.loads(page.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'markdown': continue
            for q in quotations(''.join(cell['source'])):
                for p in parts(q): yield page.relative_to(ROOT).as_posix(), p


def test_quotations_are_the_papers_words():
    known = set(KNOWN.read_text().split())
    found = list(quoted())
    unknown = [f'{page} quotes {p!r}' for page,p in found if checksum(p) not in known]
    assert len(found) > 30 and not unknown, '\n'.join(unknown)


@pytest.mark.parametrize('text, found', [
    ('> *"For all three [...] from the scratch."* (§3.5)', ['for all three', 'from the scratch']),
    ('It says *"better than scratch"* (§3.5).', ['better than scratch']), ('> *"a loss $L$ is"*', ['a loss', 'is']),
    ('Somebody else says *"anything at all"*.', [])])
def test_what_is_taken_for_a_quotation(text, found): assert [p for q in quotations(text) for p in parts(q)] == found


def main(paper):
    text = re.sub(r'(\w)-\n+(\w)', r'\1\2', Path(paper).read_text(encoding='utf-8'))
    text = re.sub(r'\[[0-9, ]+\]', ' ', text)                # references
    text = f' {words(text)} '
    missing = [(page, p) for page,p in quoted() if f' {p} ' not in text]
    for page,p in missing: print(f'not in the paper: {page}: {p}')
    KNOWN.write_text('\n'.join(sorted({checksum(p) for page,p in quoted() if (page, p) not in missing})) + '\n')
    return int(bool(missing))


if __name__ == '__main__': sys.exit(main(sys.argv[1]))
