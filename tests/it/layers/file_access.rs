//! `store/fs.rs` is the only door of the store to the file system: no other file of `src/store` opens, creates, removes,
//! renames or looks for a file itself. So the fault tests reach every operation.
//!
//! An operation on a file that is open already, such as a read, is no matter of this test, unless it changes the file.

use std::fs;
use std::path::Path;

use super::read_sources;
use super::source::{Source, code};

/// The door, and the tests that make it fail.
const DOOR: [&str; 2] = ["fs.rs", "faults/"];

/// What only the door may say. A pattern is a sequence of tokens, separated by spaces.
const FORBIDDEN: [&str; 19] = [
    "std :: fs",
    "tokio :: fs",
    "rustix :: fs",
    "OpenOptions",
    "File :: create",
    "File :: create_new",
    "File :: open",
    "File :: options",
    ". canonicalize (",
    ". exists (",
    ". is_dir (",
    ". read_dir (",
    ". set_len (",
    ". set_permissions (",
    ". symlink_metadata (",
    ". sync_all (",
    ". sync_data (",
    ". write_all (",
    ". write_all_at (",
];

/// What other files may say nevertheless, and why.
const ALLOWED: [(&str, &str, &str); 5] = [
    ("file_range.rs", "rustix :: fs", "sendfile reads from a file that is open"),
    ("local/folder.rs", "rustix :: fs", "flock takes a lock on the lock file, which the door has opened"),
    ("upkeep/scrub/read.rs", "rustix :: fs", "fadvise is a hint about a file that is open"),
    ("local/lists.rs", ". is_dir (", "asks an entry that the door has listed"),
    ("upkeep/usage.rs", ". is_dir (", "asks the metadata of an entry that the door has listed"),
];

/// Every violation, with its place and the remedy, and every entry of `allowed` that allows nothing.
fn violations(files: &[(String, String)], allowed: &[(&str, &str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut used = vec![false; allowed.len()];
    for (file, text) in files.iter().filter(|(file, _)| !DOOR.iter().any(|door| file.starts_with(door))) {
        let tokens = code(text);
        for pattern in FORBIDDEN {
            let words: Vec<&str> = pattern.split(' ').collect();
            for at in
                tokens.windows(words.len()).filter(|at| at.iter().map(|token| token.text).eq(words.iter().copied()))
            {
                match allowed.iter().position(|entry| (entry.0, entry.1) == (file.as_str(), pattern)) {
                    Some(entry) => used[entry] = true,
                    None => found.push(format!(
                        "src/store/{file}:{}: `{}` goes past src/store/fs.rs. Use or add a function there; only if it neither \
                         touches a path nor changes a file, allow it in {} with a reason.",
                        at[0].line,
                        pattern.replace(' ', ""),
                        file!()
                    )),
                }
            }
        }
    }
    for ((file, pattern, _), _) in allowed.iter().zip(used).filter(|(_, used)| !used) {
        found.push(format!("src/store/{file} no longer says `{}`: remove it from the list.", pattern.replace(' ', "")));
    }
    found
}

#[test]
fn only_store_fs_accesses_the_file_system() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    assert!(fs::exists(root.join("fs.rs")).unwrap());
    let mut files = Vec::new();
    read_sources(&root, &root, &mut files);
    files.retain(|(file, _)| !is_test_module(file, &root));
    let found = violations(&files, &ALLOWED);
    assert!(found.is_empty(), "\n\n{}\n", found.join("\n"));
}

/// Whether the folder's `mod.rs` declares the file for tests only.
fn is_test_module(file: &str, root: &Path) -> bool {
    let Some((folder, name)) = file.trim_end_matches(".rs").rsplit_once('/') else { return false };
    let Ok(parent) = fs::read_to_string(root.join(folder).join("mod.rs")) else { return false };
    Source::parse(&parent, &[]).test_modules.iter().any(|module| module.last().is_some_and(|last| last == name))
}

mod tests {
    use super::*;

    fn check(text: &str, allowed: &[(&str, &str, &str)]) -> Vec<String> {
        let files = [("local/tags.rs".to_owned(), text.to_owned()), ("fs.rs".to_owned(), "use std::fs;".to_owned())];
        violations(&files, allowed)
    }

    #[test]
    fn a_way_past_the_door_is_reported_with_its_line() {
        let found = check("use crate::store::fs;\n\nfn f(path: &Path) -> bool {\n    path.exists()\n}", &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("src/store/local/tags.rs:4: `.exists(`"), "{found:?}");
        assert_eq!(check("fn f() { std::fs::read(path); File::open(path); fs::read(path); }", &[]).len(), 2);
    }

    #[test]
    fn comments_and_tests_may_say_anything() {
        let text = "// std::fs\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nfn f() {}";
        assert_eq!(check(text, &[]), [""; 0]);
    }

    #[test]
    fn an_entry_of_the_list_that_allows_nothing_is_reported() {
        let allowed = [("local/tags.rs", ". exists (", "why")];
        assert_eq!(check("fn f() { path.exists() }", &allowed), [""; 0]);
        let found = check("fn f() {}", &allowed);
        assert!(found.len() == 1 && found[0].contains("no longer says `.exists(`"), "{found:?}");
    }
}
