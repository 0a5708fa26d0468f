//! The recipes of the README, as somebody copies them: the client tests run with exactly these.

/// The first block of this language below this heading, with our host in the place of `HOST:5000`.
pub fn recipe(heading: &str, language: &str, host: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading} in README"));
    let (_, block) = section.split_once(&format!("\n```{language}\n")).expect("the section has such a block");
    let (block, _) = block.split_once("\n```").expect("a block ends");
    assert!(block.contains("HOST:5000"), "the recipe under {heading} names no host");
    block.replace("HOST:5000", host)
}
