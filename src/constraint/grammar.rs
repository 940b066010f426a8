//! Context-free grammars, as far as they are regular.
//!
//! Two notations are read: GBNF, as llama.cpp's server has it, and Lark's, as llguidance reads it. The texts that
//! come out of a grammar are a subset of its own: a rule that begins directly with itself is a loop, and so is
//! one that is part of itself with nothing after it; any other nests only so deep ([`NESTING`]).

mod cursor;
mod gbnf;
mod lark;
mod reduce;
mod rules;

use std::sync::Arc;

use super::{ByteDfa, ConstraintError, TokenDfa, Vocabulary};
use cursor::Cursor;

pub use reduce::{NESTED_STATES, NESTING};

/// The most bytes of a grammar.
pub(super) const MAX_GRAMMAR: usize = 1 << 16;

impl ByteDfa {
    /// Texts of a grammar: of GBNF if its first rule is written with `::=`, and of Lark otherwise.
    ///
    /// Rules that are part of themselves are followed as deep as [`NESTED_STATES`] allow, at most [`NESTING`]
    /// deep.
    ///
    /// # Errors
    /// Names the place of what is not supported, or says that there is no text, or that the automaton is too
    /// large.
    pub fn grammar(text: &str) -> Result<Self, ConstraintError> {
        Self::grammar_within(text, NESTED_STATES)
    }

    /// The same as [`Self::grammar`], with rules followed into themselves as deep as so many states allow.
    pub(super) fn grammar_within(text: &str, states: usize) -> Result<Self, ConstraintError> {
        if text.len() > MAX_GRAMMAR {
            return Err(ConstraintError::TooLarge(format!(
                "it is {} bytes long; allowed: at most {MAX_GRAMMAR}",
                text.len()
            )));
        }
        let cursor = Cursor::new(text);
        let rules = match is_gbnf(cursor.clone()) {
            true => gbnf::parse(cursor)?,
            false => lark::parse(cursor)?,
        };
        reduce::language(rules, states)
    }
}

impl TokenDfa {
    /// Texts of a grammar, as [`ByteDfa::grammar`] has them, as tokens of `vocabulary`. Where that would be too
    /// large, rules are followed less deep into themselves.
    ///
    /// # Errors
    /// As of [`ByteDfa::grammar`] and [`TokenDfa::new`].
    pub fn grammar(text: &str, vocabulary: &Arc<Vocabulary>) -> Result<Self, ConstraintError> {
        let mut bytes = ByteDfa::grammar(text)?;
        loop {
            let states = bytes.states();
            let error = match Self::new(bytes, vocabulary.clone()) {
                Err(error @ ConstraintError::TooLarge(_)) => error,
                made => return made,
            };
            bytes = ByteDfa::grammar_within(text, states / 4)?;
            if bytes.states() == states {
                return Err(error);
            }
        }
    }
}

/// Whether the first rule is one of GBNF.
fn is_gbnf(mut cursor: Cursor) -> bool {
    loop {
        cursor.take_while(char::is_whitespace);
        if !cursor.eat("#") && !cursor.eat("//") {
            break;
        }
        cursor.take_while(|character| character != '\n');
    }
    cursor.take_while(|character| !character.is_whitespace() && character != ':');
    cursor.take_while(char::is_whitespace);
    cursor.eat("::=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(grammar: &str) -> ByteDfa {
        ByteDfa::grammar(grammar).unwrap_or_else(|error| panic!("{grammar}: {error}"))
    }

    #[track_caller]
    fn check(grammar: &str, texts: &[&str], others: &[&str]) {
        let language = language(grammar);
        for text in texts {
            assert!(language.matches(text.as_bytes()), "{text:?} of {grammar}");
        }
        for text in others {
            assert!(!language.matches(text.as_bytes()), "{text:?} of {grammar}");
        }
    }

    const ARITHMETIC: &str = r#"
# Sums of products.
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"#;

    const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

    #[test]
    fn grammars_of_gbnf_are_read_as_llama_cpp_reads_them() {
        check(
            ARITHMETIC,
            &["1+2=3\n", "(a1 +2)*x_=((3))\n5=5\n", "((((((7))))))=1\n"],
            &["", "1+2=3", "1+=3\n", "(1=1\n", "1)=1\n", "A=1\n"],
        );
        check(
            JSON,
            &[
                "{}",
                r#"{"a": [1, -2.5e1, {"b": null}], "\u00e9\n": "é"}"#,
                r#"{"a":{"b":{"c":[[]]}}}"#,
            ],
            &["[]", "{\"a\"}", "{\"a\":1,}", "{\"\n\":1}", "{\"a\":[1}]"],
        );
        check(
            r#"root ::= ("1. " move " " move "\n") ([1-9] [0-9]? ". " move " " move "\n")+
               move ::= (pawn | nonpawn | castle) [+#]?
               nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
               pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
               castle ::= "O-O" "-O"?"#,
            &["1. e4 e5\n2. Nf3 Nc6\n", "1. d4 d5\n12. O-O-O exd8=Q+\n"],
            &["1. e4 e5\n", "1. e9 e5\n2. a4 a5\n"],
        );
        check(
            "root ::= item+\nitem ::= \"- \" [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ \"\\n\"",
            &["- a\n", "- é 😀\n- b\n"],
            &["- \n", "a\n", "- a\u{2028}\n"],
        );
        check("root ::= . .{2} |", &["", "ä\nb"], &["a", "abcd"]);
        check(
            "root ::= \"a\"{2,3} \"b\"{1,} \"c\"{,1}",
            &["aab", "aaabbc"],
            &["abc", "aac"],
        );
        check("root ::= [-a] [a-] [^^]", &["--x", "a-a"], &["b-x", "--^"]);
        check(
            "root ::= \"a\"\n  | \"b\" # or\n  | other\nother ::= \"c\"",
            &["a", "b", "c"],
            &["d"],
        );
    }

    #[test]
    fn grammars_of_lark_are_read_as_grammars_of_characters() {
        check(
            r#"
?start: sum
?sum: product | sum "+" product -> add | sum "-" product -> sub
?product: atom | product "*" atom
?atom: NUMBER -> number | "-" atom | "(" sum ")"
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"#,
            &["1", " 1 + 2 * (3-4.5e6) ", "--1", "((2))*3"],
            &["", "1+", "1 2", "1\n", "(1"],
        );
        check(
            r#"
// A small language.
start: statement (";" statement)* ";"?
statement: "let"i NAME "=" value | NAME "(" [value ("," value)*] ")"
value: NAME | STRING | /[0-9]{1,3}/ | "a".."c"
NAME.2: /[a-z_]\w*/x
STRING: "'" /[^'\/]/s* "'"
"#,
            &["LETx=1;f()", "Letab='\n';", "g(a,12,'x')"],
            &["let=1", "f(,)", "f('/')", "f(1"],
        );
        check(
            "start: \"a\"~2 \"b\"~1..2 \"c\"{0,1} [\"d\"]",
            &["aab", "aabbcd"],
            &["ab", "aabbb"],
        );
        check(
            "%llguidance {}\nstart: WORD\n%import common (WORD, INT)",
            &["ab"],
            &["1"],
        );
        check(
            "start: x\nx:\n | \"a\" x  # the end\n\n",
            &["", "aaa"],
            &["b"],
        );
        check(
            "%import common.ESCAPED_STRING -> S\nstart: S",
            &[r#""a\"""#],
            &[r#""a"b""#],
        );
    }

    #[test]
    fn recursion_at_an_end_is_a_loop_and_any_other_nests() {
        let many = |text: &str| text.repeat(500);
        check("root ::= \"a\" root | \"b\"", &[&(many("a") + "b")], &["a"]);
        check(
            "root ::= root \"a\" | \"b\"",
            &[&("b".to_owned() + &many("a"))],
            &["a"],
        );
        check(
            "root ::= x (\",\" root)?\nx ::= \"x\"",
            &[&(many("x,") + "x")],
            &["x,"],
        );
        check(
            "root ::= a\na ::= b \"!\" | \"x\" a\nb ::= \"y\"",
            &[&(many("x") + "y!")],
            &["x!"],
        );
        let nested = |depth: usize| "(".repeat(depth) + &")".repeat(depth);
        check(
            "root ::= \"(\" root \")\" | \"\"",
            &["", &nested(NESTING)],
            &[&nested(NESTING + 1), "(()"],
        );
        check(
            "root ::= root \"+\" root | root \"*\" root | \"(\" root \")\" | [0-9]+",
            &["1+22*(3+4)+5", "((1))*((2+3))", &("1+".repeat(500) + "1")],
            &["1+", "(1", "1)"],
        );
        // What leads nowhere, or to itself alone, is no text.
        check("root ::= a | \"x\"\na ::= b\nb ::= a", &["x"], &[""]);
        check("root ::= root | (root)* \"x\"", &["x", "xx"], &[""]);
        for endless in [
            "root ::= root",
            "root ::= a\na ::= b\nb ::= a",
            "root ::= \"a\" root",
            "root ::= \"(\" root \")\"",
        ] {
            let error = ByteDfa::grammar(endless).unwrap_err();
            assert_eq!(error, ConstraintError::Empty, "{endless}");
        }
        check(
            "root ::= \"x\" | a\na ::= \"(\" a \")\"",
            &["x"],
            &["(x)", "()"],
        );
        // What is empty costs nothing, however often it is repeated.
        check("root ::= \"\"{0,7000}{0,7000} \"a\"", &["a"], &["", "aa"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_place() {
        for (grammar, line, column, says) in [
            ("", 1, 1, "no rule start"),
            ("a ::= \"b\"", 1, 1, "no rule root"),
            ("root ::= a", 1, 10, "a is not defined"),
            ("root ::= \"a\nroot", 1, 10, "'\"' is missing"),
            ("root ::= \"\\q\"", 1, 11, "unknown escape"),
            ("root ::= [b-a]", 1, 11, "comes after"),
            ("root ::= []", 1, 10, "no characters"),
            ("root ::= (\"a\"", 1, 14, "\")\""),
            ("root ::= \"a\"{2,1}", 1, 14, "contradict"),
            ("root ::= \"a\"{99999}", 1, 14, "10000"),
            ("root ::= <think>", 1, 10, "tokens"),
            ("root ::= \"a\"\nroot ::= \"b\"", 2, 1, "second time"),
            ("root ::= \"a\" )", 1, 14, "name of a rule"),
            ("root ::= \"é\" \"\\ud800\"", 1, 17, "hexadecimal"),
            ("start: a", 1, 8, "a is not defined"),
            ("start: \"a\" %json {}", 1, 12, "%json"),
            ("%import python.NAME\nstart: NAME", 1, 9, "common.INT"),
            (
                "%import common.NOTHING\nstart: \"a\"",
                1,
                16,
                "common.NOTHING",
            ),
            ("%declare A\nstart: A", 1, 1, "%declare"),
            ("start: /a(?=b)/", 1, 8, "look-around"),
            ("start: /a$/", 1, 8, "anchors"),
            ("start: /a/m", 1, 11, "flag m"),
            ("start: /(/", 1, 8, "unclosed group"),
            ("start: <|end|>", 1, 8, "special tokens"),
            ("start: @other", 1, 8, "other grammars"),
            ("start: \"a\" & \"b\"", 1, 12, "intersections"),
            ("start[capture]: \"a\"", 1, 6, "attributes"),
            ("a{x}: x\nstart: a{b}", 1, 2, "templates"),
            (
                "start: A\nA: b\nb: \"c\"",
                2,
                4,
                "a terminal is made of terminals",
            ),
            ("start: \"b\"..\"a\"", 1, 8, "range"),
            ("start: \"a\" = \"b\"", 1, 12, "has to come here"),
        ] {
            let error = ByteDfa::grammar(grammar).unwrap_err();
            match &error {
                ConstraintError::Grammar {
                    line: l,
                    column: c,
                    reason,
                } => {
                    assert_eq!((*l, *c), (line, column), "{grammar}: {error}");
                    assert!(reason.contains(says), "{grammar}: {error}");
                }
                _ => panic!("{grammar}: {error}"),
            }
        }
    }

    #[test]
    fn the_work_for_a_grammar_is_bounded() {
        let chain: String = (0..900)
            .map(|i| format!("r{i} ::= \"a\" r{}\n", i + 1))
            .collect();
        let doubling: String = (0..40)
            .map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1))
            .collect();
        let many: String = (0..1001).map(|i| format!("r{i} ::= \"a\"\n")).collect();
        let groups = format!("root ::= {}\"a\"{}", "(".repeat(65), ")".repeat(65));
        for grammar in [
            format!("root ::= r0\n{chain}r900 ::= \"b\""),
            format!("root ::= r0\n{doubling}r40 ::= \"a\" | \"b\""),
            format!("root ::= r0\n{many}"),
            groups,
            "root ::= ((\"a\"{1000}){1000}){1000}".to_owned(),
            "root ::= \"\"{10000}{10000}{10000}".to_owned(),
            "root ::= \"a\"****** \"b\"".to_owned(),
            // Which of the last fifteen letters is an a has to be known.
            "root ::= [ab]* \"a\" [ab]{15}".to_owned(),
            "a".repeat(MAX_GRAMMAR + 1),
            format!("start: {}", r"/\w{40}/".repeat(MAX_GRAMMAR / 8 - 1)),
            (30..60).fold("start:".to_owned(), |all, count| {
                format!(r"{all} /\w{{{count}}}/")
            }),
            format!("start: /{}/", "a".repeat(4097)),
        ] {
            let error = ByteDfa::grammar(&grammar).unwrap_err();
            let is_refused = matches!(
                error,
                ConstraintError::TooLarge(_) | ConstraintError::Grammar { .. }
            );
            assert!(is_refused, "{error}");
        }
        // A rule that branches into itself nests less deep than it might, and is not refused.
        let bushy = "root ::= \"a\" root \"b\" root \"c\" root \"d\" | \"e\"";
        check(bushy, &["e", "aebeced", "aaebecedbeced"], &["ae", "aebece"]);
        assert!(language(bushy).states() <= NESTED_STATES);
    }
}
