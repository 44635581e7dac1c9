"""A subset of Python as a grammar: whatever it completes, `ast.parse` of Python 3.11 and later accepts.

Python's own grammar counts indents and brackets, which no context-free grammar can: here every depth has rules of its
own, down to `INDENTS` indents of four spaces and `BRACKETS` brackets in one another. Chains that Python parses by
recursion (operators, `a.b.c`, `elif`) end after a few dozen, so that no program is too deep for Python's parser.

Statements: expressions, `=` (chained, several targets, one of them starred), annotated and augmented assignment,
`return`, `yield`, `raise`, `assert`, `del`, `pass`, `break`, `continue`, `import`, `from ... import`, `global`,
`nonlocal`; `if`, `while`, `for`, `try`, `with`, `def`, `class`, their `async` forms and decorators. Expressions: names,
numbers, strings (also raw, bytes, triple-quoted, and formatted ones whose fields are names with attributes, subscripts
and plain calls), all operators, comparisons, conditionals, `lambda`, `await`, walrus in brackets and conditions,
tuples, lists, dicts, sets, comprehensions, calls, attributes, subscripts and slices. Comments and blank lines between
statements, line breaks within brackets.

Not in it: `match`, `except*`, `type`, positional-only parameters, semicolons, backslashes at line ends, tabs, strings
side by side, names beyond ASCII, comments within brackets. That `return` stands in a function, or that a name exists,
is not the parser's business, nor this grammar's.
"""

from __future__ import annotations

import keyword
from functools import cache

INDENTS = 6
BRACKETS = 6

_TEXT = r"[^\x00-\x1f\x7f"  # a class of characters, left open
_ESCAPE = r"\\[abfnrtv\\'\x220]|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}"
_COMMENT = rf"#({_TEXT}]|\t)*"
_BREAK = r"(\n {0,60})?"  # a new line within brackets

# the spaces around operators and keywords belong to them: then the longest lexeme is always the right one
_LEXEMES = rf'''
KEYWORD: /{"|".join([*keyword.kwlist, "__debug__"])}/
NAME: /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ & ~KEYWORD
NUMBER: INTEGER | /0x[0-9a-f]{{1,16}}|0b[01]{{1,64}}/ | INTEGER /(\.[0-9]{{1,17}})?(e[+-]?[0-9]{{1,3}})?/
INTEGER: /0|[1-9](_?[0-9]){{0,17}}/
STRING: /"({_TEXT}"\\]|{_ESCAPE})*"|'({_TEXT}'\\]|{_ESCAPE})*'/
RAW: /r"({_TEXT}"\\]|\\{_TEXT}"])*"|r'({_TEXT}'\\]|\\{_TEXT}'])*'/
BYTES: /b"([ !#-\[\]-~]|\\[nrt0\\"]|\\x[0-9a-f]{{2}})*"|b'([ -&(-\[\]-~]|\\[nrt0\\']|\\x[0-9a-f]{{2}})*'/
LONG: /"""("{{0,2}}({_TEXT}"\\]|[\t\n]|{_ESCAPE}))*"""/
SPEC: /(![rsa])?(:[<>^]?([1-9][0-9]?)?(\.[0-9])?[a-z%]?)?/
FIELD: "{{" NAME (("." NAME) | ("[" (/[0-9]{{1,9}}/ | NAME) "]") | PLAIN_CALL){{0,4}} SPEC "}}"
PLAIN_CALL: "(" (NAME (", " NAME){{0,3}})? ")"
FORMATTED: ("f\"" (/{_TEXT}"\\{{}}]|\{{\{{|\}}\}}|\\[nrt\\']/ | FIELD)* "\"")
         | ("f'" (/{_TEXT}'\\{{}}]|\{{\{{|\}}\}}|\\[nrt\\"]/ | FIELD)* "'")
BINARY: / ?(\+|-|\*\*?|\/\/?|%|@|\||&|\^|<<|>>) ?/
COMPARE: / ?(==|!=|<=?|>=?) ?/
AUGMENT: / (\+|-|\*\*?|\/\/?|%|@|\||&|\^|<<|>>)= /
SIGN: /[-+~]/
WALRUS: / ?:= ?/
OPEN: /\({_BREAK}/
CLOSE: /{_BREAK}\)/
OPEN_LIST: /\[{_BREAK}/
CLOSE_LIST: /{_BREAK}\]/
OPEN_DICT: /\{{{_BREAK}/
CLOSE_DICT: /{_BREAK}\}}/
COMMA: /,( |\n {{0,60}})?/
FOR: /( |\n {{0,60}})(async )?for /
HEAD: /(({_COMMENT})?\n)+/
'''

# of one depth of brackets: $ stands for it, ^ for the next one
_EXPRESSIONS = """
expr$: tern$ | lambda$
tern$: or$ (" if " or$ " else " or$){0,3}
lambda$: ("lambda: " | "lambda " lparams$ ": ") tern$
lparams$: names (", " ldefault$)* (", " lstar)? | ldefault$ (", " ldefault$)* (", " lstar)? | lstar
ldefault$: NAME "=" or$
or$: and$ (" or " and$){0,15}
and$: not$ (" and " not$){0,15}
not$: "not "? compare$
compare$: sum$ ((COMPARE | " in " | " not in " | " is " | " is not ") sum$){0,7}
sum$: unary$ (BINARY unary$){0,31}
unary$: SIGN? (NUMBER | "await "? primary$) | "..."
exprs$: expr$ (", " expr$)*
"""
_AROUND = """
primary$: atom$ trailer${0,15}
atom$: NAME | STRING | RAW | BYTES | LONG | FORMATTED | "None" | "True" | "False" | group$
trailer$: "." NAME | OPEN (args^ | expr^ for^)? CLOSE | subscript$
subscript$: OPEN_LIST slice^ (COMMA slice^)* CLOSE_LIST
group$: OPEN (expr^ (COMMA expr^)* COMMA? | expr^ for^ | NAME WALRUS expr^)? CLOSE
      | OPEN_LIST (items^ | expr^ for^)? CLOSE_LIST
      | OPEN_DICT (pairs^ | tern^ ": " expr^ for^ | items^ | expr^ for^)? CLOSE_DICT
target$: NAME | primary$ "." NAME | primary$ subscript$
"""
_INNERMOST = """
primary$: atom$ ("." NAME){0,15}
atom$: NAME | STRING | RAW | BYTES | FORMATTED | "None" | "True" | "False" | "()" | "[]" | "{}"
"""
_WITHIN = """
items$: item$ (COMMA item$)* COMMA?
item$: expr$ | "*" sum$
pairs$: pair$ (COMMA pair$)* COMMA?
pair$: tern$ ": " expr$ | "**" sum$
for$: (FOR names " in " or$ (" if " or$){0,3}){1,3}
args$: item$ (COMMA item$)* (COMMA keyword$)* COMMA? | keyword$ (COMMA keyword$)* COMMA?
keyword$: NAME "=" expr$ | "**" sum$
slice$: tern$ | tern$? ":" tern$? (":" tern$?)?
"""

_STATEMENTS = r"""
start: HEAD? block0 "\n"?
simple: exprs0 | (targets " = "){1,4} exprs0 | target0 AUGMENT exprs0 | target0 ": " tern0 (" = " exprs0)?
      | "pass" | "break" | "continue" | "return" | "return " exprs0 | "yield" | "yield " exprs0 | "yield from " tern0
      | "raise" | "raise " tern0 (" from " tern0)? | "assert " tern0 (", " tern0)? | "del " target0 (", " target0)*
      | "global " names | "nonlocal " names
      | "import " module (" as " NAME)? (", " module (" as " NAME)?)*
      | "from " (/\.{1,3}/ module? | module) " import " imported
targets: (target0 ", ")* ("*" target0 ", ")? target0 | target0 ", *" target0
imported: "*" | alias (", " alias)* | OPEN alias (COMMA alias)* COMMA? CLOSE
alias: NAME (" as " NAME)?
module: NAME ("." NAME){0,15}
names: NAME (", " NAME){0,15}
lstar: "*" NAME (", " NAME "=" NAME){0,7} (", **" NAME)? | "**" NAME
test: tern0 | NAME WALRUS tern0
each: target0 (", " target0){0,7}
item: tern0 (" as " target0)?
params: plain (COMMA plain)* (COMMA default)* (COMMA star)? | default (COMMA default)* (COMMA star)? | star
plain: NAME (": " tern1)?
default: plain ("=" | " = ") tern1
star: "*" (plain | COMMA (plain | default)) (COMMA (plain | default))* (COMMA "**" plain)? | "**" plain
"""

# of one depth of indents
_BLOCK = """
block$: line$ (NL$ line$)*
line$: simple | if$ | while$ | loop$ | try$ | with$ | ("@" tern0 NL$){0,4} (def$ | class$)
body$: NL^ block^ | " " simple
if$: "if " test ":" body$ (NL$ "elif " test ":" body$){0,31} else$?
else$: NL$ "else:" body$
while$: "while " test ":" body$ else$?
loop$: ("for " | "async for ") each " in " exprs0 ":" body$ else$?
try$: "try:" body$ (catch${1,8} (NL$ "except:" body$)? else$? last$? | NL$ "except:" body$ else$? last$? | last$)
catch$: NL$ "except " tern0 (" as " NAME)? ":" body$
last$: NL$ "finally:" body$
with$: ("with " | "async with ") item (", " item){0,7} ":" body$
def$: ("def " | "async def ") NAME OPEN (params COMMA?)? CLOSE (" -> " tern0)? ":" body$
class$: "class " NAME (OPEN args1? CLOSE)? ":" body$
"""
_INNERMOST_BLOCK = "block$: simple (NL$ simple)*"


@cache
def python_grammar() -> str:
    """The grammar, in the Lark dialect of llguidance."""
    rules = [_STATEMENTS, _LEXEMES]
    for depth in range(BRACKETS + 1):
        inside = _INNERMOST if depth == BRACKETS else _AROUND
        rules.append(_at(_EXPRESSIONS + inside + (_WITHIN if depth else ""), depth))
    for depth in range(INDENTS + 1):
        rules.append(_at(_INNERMOST_BLOCK if depth == INDENTS else _BLOCK, depth))
        rules.append(_line_end(depth))
    return "\n".join(rules)


def _at(rules: str, depth: int) -> str:
    return rules.replace("$", str(depth)).replace("^", str(depth + 1))


def _line_end(depth: int) -> str:
    """The end of a line with a comment, lines of nothing or comments, and the indent of the next statement."""
    between = rf"(\n{{1,3}} {{0,60}}{_COMMENT})*\n{{1,3}}"
    return rf"NL{depth}: /( {{1,2}}{_COMMENT})?{between} {{{4 * depth}}}/"
