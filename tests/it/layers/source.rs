//! Extracts the paths in a source file from its text, without a complete Rust parser.

use std::collections::BTreeSet;
use std::ops::Range;

/// A path such as `crate::store::Blob`, made absolute: `["store", "Blob"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub line: usize,
    pub segments: Vec<String>,
    /// The name that a `use` gives it in this file; `None` for a path inside an expression and for `use …::*`.
    pub binding: Option<String>,
    /// Whether it started without `crate`, `self` or `super`: then it may also lead to another crate.
    pub relative: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Source {
    pub paths: Vec<Path>,
    /// Absolute paths of the modules that are declared here for tests only. Their files are ignored.
    pub test_modules: BTreeSet<Vec<String>>,
    /// The tokens that are compiled for tests only.
    test_code: Vec<Range<usize>>,
}

/// A word, `::` or another character outside of comments and literals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

/// The tokens of a file without code that is compiled for tests only.
pub fn code(text: &str) -> Vec<Token<'_>> {
    let test_code = Source::parse(text, &[]).test_code;
    let numbered = tokens(text).into_iter().enumerate();
    numbered.filter(|(at, _)| !test_code.iter().any(|range| range.contains(at))).map(|(_, token)| token).collect()
}

impl Source {
    /// Reads `text`, the file of the module `module` (empty for the crate's root).
    pub fn parse(text: &str, module: &[String]) -> Self {
        let tokens = tokens(text);
        let mut reader = Reader { tokens: &tokens, at: 0, module: module.to_vec(), found: Self::default() };
        reader.items();
        reader.found
    }
}

/// Splits a text into words, `::` and single characters. Comments, strings and character literals are left out.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < text.len() {
        let rest = &text[at..];
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (length, is_token) = match skipped(rest, word) {
            Some(length) => (length, false),
            None if word > 0 => (word, true),
            None if rest.starts_with("::") => (2, true),
            None => (rest.chars().next().map_or(1, char::len_utf8), true),
        };
        if is_token {
            found.push(Token { text: &rest[..length], line });
        }
        line += rest[..length].matches('\n').count();
        at += length;
    }
    found
}

/// The length of the white space, comment or literal at the start of `rest`; `word` is the length of its first word.
fn skipped(rest: &str, word: usize) -> Option<usize> {
    let (prefix, tail) = rest.split_at(word);
    if let "r" | "br" | "cr" = prefix {
        let quote = format!("\"{}", &tail[..tail.len() - tail.trim_start_matches('#').len()]);
        let body = tail.trim_start_matches('#').strip_prefix('"');
        return body
            .map(|body| rest.len() - body.len() + body.find(&quote).map_or(body.len(), |end| end + quote.len()));
    }
    if let ("" | "b" | "c", true) = (prefix, tail.starts_with('"')) {
        return Some(word + quoted(tail, '"'));
    }
    if word > 0 {
        return None;
    }
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    let mut chars = rest.chars();
    match (chars.next()?, chars.next(), chars.next()) {
        ('\'', Some('\\'), _) | ('\'', Some(_), Some('\'')) => Some(quoted(rest, '\'')),
        // A lifetime: the quote alone, as its name is a word like any other.
        ('\'', ..) => Some(1),
        (c, ..) if c.is_whitespace() => Some(c.len_utf8()),
        _ => None,
    }
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    module: Vec<String>,
    found: Source,
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| token.text)
    }

    fn starts_with(&self, expected: &[&str]) -> bool {
        expected.iter().enumerate().all(|(n, text)| self.peek(n) == *text)
    }

    /// Reads to the end of the text, or to the brace that ends the module it is in.
    fn items(&mut self) {
        let mut depth = 0;
        while self.at < self.tokens.len() {
            match self.peek(0) {
                "#" if self.peek(1) == "[" => self.attribute(),
                "mod" if self.peek(2) == "{" => self.inline_module(),
                "use" if self.peek(1) != "<" => {
                    self.at += 1;
                    self.tree(true);
                }
                // Also matches the `$crate` of a macro, which starts the same path.
                "crate" | "self" | "super" if self.peek(1) == "::" => self.tree(false),
                "{" => (depth, self.at) = (depth + 1, self.at + 1),
                "}" if depth == 0 => return,
                "}" => (depth, self.at) = (depth - 1, self.at + 1),
                _ => self.at += 1,
            }
        }
    }

    fn inline_module(&mut self) {
        self.module.push(self.peek(1).to_owned());
        self.at += 3;
        self.items();
        self.at += 1;
        self.module.pop();
    }

    /// Skips an attribute, and also its item if that is compiled for tests only.
    fn attribute(&mut self) {
        let start = self.at;
        self.at += 1;
        self.group();
        let words = || self.tokens[start..self.at].iter().map(|token| token.text);
        let is_test = words().nth(2) == Some("cfg") && words().any(|word| word == "test");
        if is_test && !words().any(|word| word == "not") {
            self.test_item();
            self.found.test_code.push(start..self.at);
        }
    }

    fn test_item(&mut self) {
        while self.starts_with(&["#", "["]) {
            self.at += 1;
            self.group();
        }
        let start = self.at;
        let ends_with_semicolon = |word: &str| matches!(word, "use" | "const" | "static" | "type" | "let");
        let is_function = |word: &str| matches!(word, "fn" | "impl" | "trait");
        let (mut to_semicolon, mut has_commas) = (false, false);
        while self.at < self.tokens.len() {
            let word = self.peek(0);
            to_semicolon |= ends_with_semicolon(word);
            has_commas |= is_function(word);
            match word {
                "mod" if self.peek(2) == ";" => {
                    let name = self.peek(1).to_owned();
                    let path = self.module.iter().cloned().chain([name]).collect();
                    self.found.test_modules.insert(path);
                    self.at += 1;
                }
                ";" => {
                    self.at += 1;
                    return;
                }
                "," if !has_commas && !to_semicolon => return,
                "}" => return,
                "{" => {
                    self.group();
                    if !to_semicolon {
                        return;
                    }
                }
                "(" | "[" => self.group(),
                _ => self.at += 1,
            }
        }
        assert!(self.at > start, "an attribute stands at the end of a file");
    }

    /// Skips a pair of brackets and everything between them.
    fn group(&mut self) {
        let mut depth = 0;
        while self.at < self.tokens.len() {
            match self.peek(0) {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    /// Reads a path or, in a `use`, a tree of paths.
    fn tree(&mut self, is_use: bool) {
        let mut prefix = self.module.clone();
        let relative = match self.peek(0) {
            "crate" => {
                prefix.clear();
                false
            }
            "super" => {
                prefix.pop();
                while self.starts_with(&["super", "::", "super"]) {
                    prefix.pop();
                    self.at += 2;
                }
                false
            }
            "self" => false,
            _ => {
                if self.peek(0) == "::" {
                    // `use ::name` always leads to another crate.
                    self.at += 1;
                    prefix = vec!["::".to_owned()];
                }
                self.branch(prefix, true, is_use);
                return;
            }
        };
        self.at += 1;
        if self.peek(0) == "::" {
            self.at += 1;
            self.branch(prefix, relative, is_use);
        }
    }

    fn branch(&mut self, prefix: Vec<String>, relative: bool, is_use: bool) {
        if self.peek(0) == "{" {
            self.at += 1;
            while !matches!(self.peek(0), "}" | "") {
                match self.peek(0) {
                    "," => self.at += 1,
                    "crate" | "super" => self.tree(is_use),
                    _ => self.branch(prefix.clone(), relative, is_use),
                }
            }
            self.at += 1;
            return;
        }
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        let mut segments = prefix;
        let mut binding = None;
        match self.peek(0) {
            "*" => {}
            "self" => binding = segments.last().cloned(),
            name => {
                binding = Some(name.to_owned());
                segments.push(name.to_owned());
            }
        }
        self.at += 1;
        if self.peek(0) == "::" && !matches!(self.peek(1), "<" | "") {
            self.at += 1;
            return self.branch(segments, relative, is_use);
        }
        if is_use && self.peek(0) == "as" {
            binding = Some(self.peek(1).to_owned());
            self.at += 2;
        }
        self.found.paths.push(Path { line, segments, binding: binding.filter(|_| is_use), relative });
    }
}

mod tests {
    use super::*;

    fn module(path: &str) -> Vec<String> {
        path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    /// Every path as `line path`, or `line path = binding`; `?` marks a relative one.
    fn paths(text: &str, of: &str) -> Vec<String> {
        let source = Source::parse(text, &module(of));
        let shown = source.paths.iter().map(|path| {
            let mark = if path.relative { "?" } else { "" };
            let binding = path.binding.as_ref().map_or(String::new(), |name| format!(" = {name}"));
            format!("{} {mark}{}{binding}", path.line, path.segments.join("::"))
        });
        shown.collect()
    }

    #[test]
    fn use_trees_become_one_path_for_each_leaf() {
        let text = "use crate::{\n    oci::{self, Digest as D},\n    store::*,\n};\nuse std::io;";
        let expected = ["2 oci = oci", "2 oci::Digest = D", "3 store", "5 ?pull::std::io = io"];
        assert_eq!(paths(text, "pull"), expected);
    }

    #[test]
    fn super_and_self_are_relative_to_the_module() {
        let text = "use super::super::oci;\nfn f() { super::a::b(); self::c(); }\nmod inner { use super::d; }";
        let expected = ["1 oci = oci", "2 store::a::b", "2 store::local::c", "3 store::local::d = d"];
        assert_eq!(paths(text, "store::local"), expected);
    }

    #[test]
    fn paths_inside_expressions_and_types_are_found() {
        let text = "fn f(x: &'static crate::oci::Digest) -> Vec<crate::store::Blob> {\n    crate::pull::new::<u8>('\\'', 'c')\n}";
        assert_eq!(paths(text, ""), ["1 oci::Digest", "1 store::Blob", "2 pull::new"]);
    }

    #[test]
    fn comments_and_literals_are_not_read() {
        let text = "// crate::a::b\n/* /* crate::a */ crate::b::c */ /// [`crate::d::e`]\nlet a = \"crate::a::b \\\" crate::c\";\n\
                    let b = r#\"\" crate::a::b \"#; let c = b\"crate::a::b\"; let d = '\"'; crate::real::one();";
        assert_eq!(paths(text, ""), ["4 real::one"]);
    }

    #[test]
    fn code_for_tests_is_not_read() {
        let text = "#[cfg(test)]\nmod faults;\n#[cfg(test)]\nuse crate::a::{b, c};\n#[cfg(not(test))]\nuse crate::kept::x;\n\
                    #[cfg(test)]\n#[inline]\nfn f<A, B>() { crate::a::b() }\n#[cfg(all(test, unix))]\nmod tests {\n    use crate::a::b;\n}\n\
                    struct S { #[cfg(test)] field: crate::a::B, other: crate::kept::C }\nuse crate::kept::y;";
        assert_eq!(paths(text, "store"), ["6 kept::x = x", "14 kept::C", "15 kept::y = y"]);
        let found = Source::parse(text, &module("store")).test_modules;
        assert_eq!(found, BTreeSet::from([module("store::faults")]));
    }

    #[test]
    fn visibility_names_no_path_to_another_module() {
        assert_eq!(paths("pub(crate) fn f() {}\npub(in crate::store) fn g() {}", "store::a"), ["2 store"]);
    }
}
