"""How well the privacy filter finds what it should, and leaves alone what only looks like it.

Each example is a sentence around one value that `faker` made (identity numbers: drawn until their check digits are
right), between sentences of Python's own documentation; as many hold a value that is none: versions, times, hashes,
ISBNs, code.
A find counts if it has the value's kind and covers all of it; every other find is a false one.

    python bench/privacy_quality.py [--each 60] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pydoc_data.topics import topics

from faker import Faker

from tenth.serve.privacy_rules import find
from tenth.serve.privacy_segments import Piece, Segments

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "pt_BR", "nl_NL", "pl_PL", "sv_SE", "zh_CN")
KINDS = ("EMAIL", "PHONE", "CARD", "IBAN", "ID", "SECRET")

# a language's ways to bring a value up; `{}` is its place
CARRIERS = {
    "en": {
        "EMAIL": ["You can write to {} for details.", "Contact: {}", "Send it to <{}>, she will answer.", "(see {})"],
        "PHONE": ["My phone number is {}.", "Call me at {} tomorrow.", "Tel: {}", "You reach us under {}, all day."],
        "CARD": ["Please charge my card {}.", "The number is {}, valid until 12/29.", "card={}"],
        "IBAN": ["Transfer it to {} by Friday.", "IBAN: {}", "My account is {}."],
    },
    "de": {
        "EMAIL": ["Bitte schreiben Sie an {}.", "E-Mail: {}", "Frau Müller ({}) weiß mehr."],
        "PHONE": ["Meine Telefonnummer ist {}.", "Rufen Sie uns an: {}", "Tel.: {}", "Sie erreichen mich unter {}."],
        "CARD": ["Bitte belasten Sie meine Karte {}.", "Kreditkarte: {}"],
        "IBAN": ["Überweisen Sie es auf {}.", "IBAN: {}"],
    },
    "fr": {
        "EMAIL": ["Écrivez à {} pour en savoir plus.", "Courriel : {}"],
        "PHONE": ["Mon numéro de téléphone est le {}.", "Appelez-moi au {} demain.", "Tél. : {}", "Joignable au {}."],
        "CARD": ["Ma carte est la {}.", "Carte bancaire : {}"],
        "IBAN": ["Virez la somme sur {}.", "IBAN : {}"],
    },
    "es": {
        "EMAIL": ["Escriba a {} para más detalles.", "Correo: {}"],
        "PHONE": ["Mi número de teléfono es {}.", "Llámame al {} mañana.", "Tel.: {}", "Móvil {}"],
        "CARD": ["Mi tarjeta es {}.", "Tarjeta: {}"],
        "IBAN": ["Transfiera a {} antes del viernes.", "IBAN: {}"],
    },
    "it": {
        "EMAIL": ["Scriva a {} per i dettagli.", "Posta: {}"],
        "PHONE": ["Il mio numero di telefono è {}.", "Chiamami al {} domani.", "Tel.: {}", "Cellulare {}"],
        "CARD": ["La mia carta è {}.", "Carta: {}"],
        "IBAN": ["Bonifico su {} entro venerdì.", "IBAN: {}"],
    },
    "pt": {
        "EMAIL": ["Escreva para {} para saber mais.", "E-mail: {}"],
        "PHONE": ["Meu telefone é {}.", "Me ligue no {} amanhã.", "Tel.: {}", "Celular {}"],
        "CARD": ["Meu cartão é {}.", "Cartão: {}"],
        "IBAN": ["Transfira para {} até sexta.", "IBAN: {}"],
    },
    "nl": {
        "EMAIL": ["Schrijf naar {} voor meer.", "E-mail: {}"],
        "PHONE": ["Mijn telefoonnummer is {}.", "Bel me op {} morgen.", "Tel.: {}", "Mobiel {}"],
        "CARD": ["Mijn kaart is {}.", "Kaart: {}"],
        "IBAN": ["Maak het over naar {}.", "IBAN: {}"],
    },
    "pl": {
        "EMAIL": ["Proszę pisać na {}.", "E-mail: {}"],
        "PHONE": ["Mój numer telefonu to {}.", "Zadzwoń pod {} jutro.", "Tel.: {}", "Komórka {}"],
        "CARD": ["Moja karta to {}.", "Karta: {}"],
        "IBAN": ["Przelej na {} do piątku.", "IBAN: {}"],
    },
    "sv": {
        "EMAIL": ["Skriv till {} för mer.", "E-post: {}"],
        "PHONE": ["Mitt telefonnummer är {}.", "Ring mig på {} i morgon.", "Tel: {}", "Mobil {}"],
        "CARD": ["Mitt kort är {}.", "Kort: {}"],
        "IBAN": ["Betala till {} före fredag.", "IBAN: {}"],
    },
    "zh": {
        "EMAIL": ["请发邮件到{}，谢谢。", "邮箱：{}"],
        "PHONE": ["我的电话是{}。", "请拨打{}联系我们", "手机：{}", "联系方式 {}"],
        "CARD": ["我的卡号是{}。", "信用卡：{}"],
        "IBAN": ["请转账到{}。", "IBAN：{}"],
    },
}
ID_CARRIERS = {
    "en_US": ["My SSN is {}.", "Applicant {} was approved.", "Social security number: {}"],
    "en_GB": ["My National Insurance number is {}.", "NI number: {}", "Employee {} starts on Monday."],
    "de_DE": ["Meine Steuer-ID lautet {}.", "IdNr. {}", "Die Nummer {} steht im Bescheid."],
    "fr_FR": ["Mon numéro de sécurité sociale est le {}.", "NIR : {}", "Assuré {} remboursé."],
    "es_ES": ["Mi DNI es {}.", "NIF: {}", "El titular {} ha firmado."],
    "it_IT": ["Il mio codice fiscale è {}.", "C.F. {}", "Il cliente {} ha firmato."],
    "pt_BR": ["Meu CPF é {}.", "CPF: {}", "O cliente {} assinou."],
    "nl_NL": ["Mijn BSN is {}.", "Burgerservicenummer: {}"],
    "pl_PL": ["Mój PESEL to {}.", "PESEL: {}", "Klient {} podpisał."],
    "sv_SE": ["Mitt personnummer är {}.", "Personnummer: {}", "Kunden {} har skrivit under."],
    "zh_CN": ["我的身份证号是{}。", "身份证：{}", "客户{}已签字。"],
}
SECRET_CARRIERS = [
    *("password = '{}'", "export API_KEY={}", '{{"client_secret": "{}"}}', "The password is {}", "DB_PASSWORD: {}"),
    *("Authorization: Bearer {}", 'secret_token: "{}"', "access_key={}&v=2"),
]
TOKEN_CARRIERS = ["I used {} and it works.", "key {}", "{}", "curl -H 'x-api-key: {}' https://example.com"]

# what is none of it
NEGATIVES: list[Callable[[random.Random, Faker], str]] = [
    lambda r, f: f"Version {r.randrange(20)}.{r.randrange(30)}.{r.randrange(9999)} was released on {f.date()}.",
    lambda r, f: f"[{f.iso8601()}] took {r.random() * 1000:.6f} ms in thread {r.randrange(10**5)}",
    lambda r, f: f"At {int(f.unix_time())} or {int(f.unix_time()) * 1000 + r.randrange(1000)} the event was seen.",
    lambda r, f: f"The request {f.uuid4()} failed.",
    lambda r, f: f"commit {f.sha1()} and sha256:{f.sha256()}, md5 {f.md5()}",
    lambda r, f: f"ISBN {f.isbn13()} or {f.isbn10()}, EAN {f.ean13()}",
    lambda r, f: f"The host {f.ipv4()}:{r.randrange(65536)} ({f.ipv6()}, {f.mac_address()}) answers.",
    lambda r, f: f"Order {r.randrange(10**7, 10**10)} and invoice {f.year()}-{r.randrange(10**6):06d} were sent.",
    lambda r, f: f"Order number {r.randrange(10**10, 10**16)} was shipped on {f.date(pattern='%d.%m.%Y')}.",
    lambda r, f: f"It cost ${r.randrange(10**7):,}.{r.randrange(100):02d}, or {r.randrange(10**6):,} a year".replace(
        ",", r.choice(", ")
    ),
    lambda r, f: f"x = [{', '.join(str(r.randrange(10 ** r.randrange(1, 8))) for _ in range(8))}]",
    lambda r, f: " ".join(str(r.randrange(10 ** r.randrange(1, 5))) for _ in range(10)),
    lambda r, f: f"{f.latitude()}, {f.longitude()} at {r.random():.16f} and {r.random():.9e}",
    lambda r, f: f"between {f.year()}-{f.year()} and {f.year()} - {f.year()}, {f.date(pattern='%m/%d/%Y')} {f.time()}",
    lambda r, f: f"git clone git@github.com:{f.user_name()}/{f.word()}.git && npm i {f.word()}@{r.randrange(9)}.20.1",
    lambda r, f: (
        f"@{f.word()}.route('/v1/{f.word()}')\ndef {f.word()}(self, a: int = {r.randrange(10**6)}) -> None: ..."
    ),
    lambda r, f: f"token = get_token(request, {r.randrange(10**4)}); password = form.cleaned_data['password']",
    lambda r, f: f"max_tokens: 4096, api_key = os.environ['KEY_{r.randrange(9)}'], secret = conf.secret_{f.word()}",
    lambda r, f: (
        f'A password must have at least {r.randrange(8, 16)} characters; never write password = "your_password_1".'
    ),
    lambda r, f: (
        f"call {f.word()}({r.randrange(10**8)}) with 0x{r.randrange(16**12):012x} or #{r.randrange(16**6):06x}"
    ),
    lambda r, f: f"RFC {r.randrange(9999)}, ISO 8601-1:2019, DIN 5008, part no. {f.bothify('??-#####-##').upper()}",
    lambda r, f: (
        f"logo@2x.png, {f.file_path()}, C:\\x{r.randrange(10**6)}, https://{f.domain_name()}/p/{r.randrange(10**12)}?id={r.randrange(10**9)}"
    ),
    lambda r, f: (
        f"{r.randrange(100)} of {r.randrange(1000)} tests, {r.randrange(100)}.5 %, scale 1:{r.randrange(10**6)}"
    ),
    lambda r, f: (
        f"package {f.bothify('1Z########')}, serial {f.bothify('??########??')}, build {f.date(pattern='%Y%m%d')}.7"
    ),
]


@dataclass(frozen=True)
class Example:
    locale: str
    text: str
    start: int = 0
    end: int = 0
    kind: str = ""


@dataclass
class Score:
    right: int = 0
    missed: int = 0
    false: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.false)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.right + self.missed)


@cache
def prose() -> list[str]:
    """Sentences of Python's documentation."""
    text = " ".join(re.sub(r"\s+", " ", topic) for topic in topics.values())
    return [sentence for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text) if 20 < len(sentence) < 300]


def until(valid: Callable[[str], bool], draw: Callable[[], str]) -> str:
    while not valid(value := draw()):
        pass
    return value


def grouped(number: str, sizes: tuple[int, ...], separator: str = " ") -> str:
    parts, at = list[str](), 0
    for size in sizes:
        parts.append(number[at : at + size])
        at += size
    return separator.join([part for part in [*parts, number[at:]] if part])


def identity(locale: str, r: random.Random, f: Faker) -> str:
    from stdnum.de import idnr

    if locale == "en_GB":
        first, second = r.choice("ABCEGHJKLMNPRSTWXYZ"), r.choice("ABCEGHJKLMNPRSTWXYZ")
        if first + second in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ"):
            return identity(locale, r, f)
        number = f"{first}{second}{r.randrange(10**6):06d}{r.choice('ABCD')}"
        return r.choice([number, grouped(number, (2, 2, 2, 2, 1))])
    if locale == "de_DE":
        number = until(idnr.is_valid, lambda: str(r.randrange(10**10, 10**11)))
        return r.choice([number, grouped(number, (2, 3, 3, 3))])
    if locale == "es_ES":
        return r.choice([f.nif, f.nie])()
    if locale == "pt_BR":
        return f.cpf()
    if locale == "fr_FR":
        number = f.ssn()
        return r.choice([number, grouped(number, (1, 2, 2, 2, 3, 3, 2))])
    return f.ssn()


def card(r: random.Random, f: Faker) -> str:
    number = f.credit_card_number()
    sizes = {15: (4, 6, 5), 14: (4, 6, 4)}.get(len(number), (4, 4, 4, 4))
    return r.choice([number, grouped(number, sizes, r.choice(" -"))]) if len(number) in (14, 15, 16) else number


def token(r: random.Random) -> str:
    def some(n: int, letters: str = string.ascii_letters + string.digits) -> str:
        return "".join(r.choice(letters) for _ in range(n))

    upper = string.ascii_uppercase + string.digits
    return r.choice(
        [
            *(
                f"sk-{some(48)}",
                f"sk-proj-{some(60)}",
                f"sk-ant-api03-{some(80)}",
                f"ghp_{some(36)}",
                f"AKIA{some(16, upper)}",
            ),
            *(f"github_pat_{some(22)}_{some(59)}", f"AIza{some(35)}", f"xoxb-{some(11, string.digits)}-{some(24)}"),
            *(f"hf_{some(34)}", f"glpat-{some(20)}", f"sk_live_{some(24)}", f"npm_{some(36)}", f"sk-tenth-{some(43)}"),
            f"eyJhbGciOiJIUzI1NiJ9.eyJ{some(40)}.{some(43)}",
        ]
    )


def value(kind: str, locale: str, r: random.Random, f: Faker) -> tuple[str, str]:
    """A value and the sentence around it."""
    if kind == "ID":
        return identity(locale, r, f), r.choice(ID_CARRIERS[locale])
    if kind == "SECRET":
        if r.random() < 0.5:
            return token(r), r.choice(TOKEN_CARRIERS)
        letters = string.ascii_letters + string.digits
        return r.choice(
            [f.password(12, special_chars=False), "".join(r.choice(letters) for _ in range(24)), f.sha1()]
        ), r.choice(SECRET_CARRIERS)
    made = {
        "EMAIL": lambda: r.choice([f.email, f.company_email, f.free_email])(),
        "PHONE": f.phone_number,
        "CARD": lambda: card(r, f),
        "IBAN": lambda: r.choice([f.iban(), grouped(f.iban(), (4,) * 8)]),
    }[kind]()
    return made, r.choice(CARRIERS[locale[:2]][kind])


def examples(each: int, seed: int) -> list[Example]:
    """So many of each kind and locale, and as many without."""
    r, found = random.Random(seed), list[Example]()
    for locale in LOCALES:
        f = Faker(locale)
        f.seed_instance(seed)
        for kind in KINDS:
            # there are no Chinese IBANs, and what faker makes instead has the wrong length
            faker = Faker("en_GB") if (kind, locale) == ("IBAN", "zh_CN") else f
            faker.seed_instance(seed)
            for _ in range(each):
                made, carrier = value(kind, locale, r, faker)
                before, after = r.choice(prose()) + " ", r.choice([" ", "\n"]) + r.choice(prose())
                head, tail = carrier.format("\0").split("\0")
                start = len(before + head)
                found.append(Example(locale, f"{before}{head}{made}{tail}{after}", start, start + len(made), kind))
        for number in range(each * len(KINDS)):
            made = NEGATIVES[number % len(NEGATIVES)](r, f)
            found.append(Example(locale, f"{r.choice(prose())} {made} {r.choice(prose())}"))
    return found


def masked(text: str) -> list[tuple[int, int, str]]:
    """What a stream of the text masks."""
    segments, at, found = Segments(find), 0, list[tuple[int, int, str]]()
    pieces: list[Piece] = segments.take(text) + segments.finish()
    for piece in pieces:
        if piece.label:
            found.append((at, at + piece.length, piece.label))
        at += piece.length
    return found


def measure(each: int = 60, seed: int = 0) -> dict[tuple[str, str], Score]:
    """Scores by kind and locale."""
    scores = {(kind, locale): Score() for kind in KINDS for locale in LOCALES}
    for one in examples(each, seed):
        right = False
        for start, end, label in masked(one.text):
            if label == one.kind and start <= one.start and one.end <= end <= one.end + 1:
                right = True
            elif label in KINDS:
                score = scores[label, one.locale]
                score.false += 1
                score.samples.append(f"false {label}: {one.text[max(0, start - 20) : end + 5]!r}")
        if one.kind:
            score = scores[one.kind, one.locale]
            score.right += right
            score.missed += not right
            if not right:
                score.samples.append(f"missed {one.kind}: {one.text[max(0, one.start - 25) : one.end + 5]!r}")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=60, help="examples of each kind and locale")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=0, help="print so many errors of each kind and locale")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    scores = measure(asked.each, asked.seed)
    if asked.json:
        print(json.dumps({f"{kind} {locale}": [s.precision, s.recall] for (kind, locale), s in scores.items()}))
        return
    print(f"{'precision/recall':<17}" + "".join(f"{locale:>12}" for locale in LOCALES))
    for kind in KINDS:
        row = [scores[kind, locale] for locale in LOCALES]
        print(f"{kind:<17}" + "".join(f"  {s.precision:.3f}/{s.recall:.3f}"[:12].rjust(12) for s in row))
    total = Counter[str]()
    for score in scores.values():
        total.update(right=score.right, missed=score.missed, false=score.false)
        for sample in score.samples[: asked.samples]:
            print("  ", sample)
    print(f"all: precision {total['right'] / (total['right'] + total['false']):.4f}, "
          f"recall {total['right'] / (total['right'] + total['missed']):.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
