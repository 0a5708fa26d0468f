//! What the documents say is true: their links lead somewhere, and the messages that they quote exist in the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Shorter quotations, in words, are names, statuses or commands rather than messages.
const MIN_MESSAGE_WORDS: usize = 3;

/// Where quoted messages are put together: placeholders, separators, and texts that come from the operating system or from other programs.
const NOT_OURS: [&str; 24] = [
    "exec format error",
    "…",
    "manifest unknown to",
    "blob unknown to",
    "UPSTREAM",
    "ADDRESS",
    "HOST",
    "NAME",
    "DIR",
    "PID",
    "error=",
    "status=507",
    " N ",
    "127.0.0.1:5000",
    "502 Bad Gateway",
    "401 Unauthorized",
    "Read-only file system (os error 30)",
    "Permission denied (os error 13)",
    "Address already in use (os error 98)",
    "x509: certificate signed by unknown authority",
    "Verify return code: 0",
    "System clock synchronized: yes",
    "roadstead: ",
    ": ",
];

/// Quotations that begin with one of these are commands.
const PROGRAMS: [&str; 8] = ["roadstead ", "curl ", "docker ", "openssl ", "ss ", "timedatectl ", "chown ", "ps "];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below `folder` with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    found
}

fn pages() -> Vec<PathBuf> {
    let top = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name));
    top.into_iter().chain(files(&root().join("docs"), "md")).collect()
}

/// The page without its blocks of code.
fn prose(page: &Path) -> String {
    let text = fs::read_to_string(page).unwrap();
    text.split("\n```").step_by(2).collect()
}

/// The anchors of a page, as they are made of its headings.
fn anchors(page: &Path) -> BTreeSet<String> {
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let text = prose(page);
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = prose(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            if !target.exists() || (!anchor.is_empty() && !anchors(&target).contains(anchor)) {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

/// The texts in backticks, which may span lines.
fn quotations(text: &str) -> Vec<String> {
    let words = |quoted: &str| quoted.split_whitespace().collect::<Vec<_>>().join(" ");
    text.split("\n\n").flat_map(|block| block.split('`').skip(1).step_by(2).map(words).collect::<Vec<_>>()).collect()
}

#[test]
fn messages_quoted_in_troubleshooting_exist_in_the_code() {
    let source: String =
        files(&root().join("src"), "rs").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    // A literal that continues on the next line, and quotes in a literal.
    let source = source.replace("\\\n", "").replace("\\\"", "\"").split_whitespace().collect::<Vec<_>>().join(" ");
    let mut missing = Vec::new();
    for quoted in quotations(&prose(&root().join("docs/troubleshooting.md"))) {
        if PROGRAMS.iter().any(|program| quoted.starts_with(program)) {
            continue;
        }
        let ours = NOT_OURS.iter().fold(quoted.clone(), |text, theirs| text.replace(theirs, "\0"));
        for part in ours.split('\0').map(|part| part.trim_matches([' ', ':', ';', '(', ')', '"', '.'])) {
            if part.split(' ').count() >= MIN_MESSAGE_WORDS && !source.contains(part) {
                missing.push(part.to_owned());
            }
        }
    }
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md quotes messages that the code does not have:\n{}",
        missing.join("\n")
    );
}
