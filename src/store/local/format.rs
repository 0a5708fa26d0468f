//! The format of a data folder: a number in the file `format`, and the version of the program that first wrote it.
//!
//! A program refuses a folder of a newer format before it writes anything. A folder without the file is of format 1.

use std::path::Path;

use super::layout::{Layout, Temporary, sync_folder};
use super::open::OpenError;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;

/// The format that this program writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// The content of the file.
#[derive(Debug, PartialEq, Eq)]
struct FolderFormat {
    number: u32,
    /// The version of the program that wrote the number.
    version: String,
}

// === impl FolderFormat ===

impl FolderFormat {
    fn to_text(&self) -> String {
        format!("format {}\nwritten by roadstead {}\n", self.number, self.version)
    }

    /// The version is text for people, so a later program may add to it.
    fn parse(text: &str) -> Option<Self> {
        let (number, rest) = text.strip_prefix("format ")?.split_once('\n')?;
        let version =
            rest.lines().next().unwrap_or_default().strip_prefix("written by roadstead ").unwrap_or("unknown");
        Some(Self { number: number.parse().ok()?, version: version.to_owned() })
    }
}

/// Checks the format of an existing folder, and writes nothing. Returns whether the file has to be written.
///
/// # Errors
/// For a newer format, and for a file that cannot be parsed.
pub(super) fn check(layout: &Layout) -> Result<bool, OpenError> {
    let path = layout.format();
    let Some(text) = optional(fs::read_to_string(&path)).at("read", &path)? else { return Ok(true) };
    let found = FolderFormat::parse(&text).ok_or(OpenError::UnknownFormat(path))?;
    match found.number > FORMAT {
        true => Err(OpenError::NewerFormat { found: found.number, version: found.version, known: FORMAT }),
        false => Ok(found.number < FORMAT),
    }
}

/// Writes the format of this program. If there is no room for the file, the next start writes it.
pub(super) fn write(layout: &Layout) -> Result<(), StoreError> {
    let format = FolderFormat { number: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned() };
    let (path, temporary) = (layout.format(), Temporary::new(layout.temporary()));
    match put(&temporary, &path, &format.to_text()) {
        Err(error) if error.is_full() => Ok(()),
        written => written,
    }
}

fn put(temporary: &Temporary, path: &Path, text: &str) -> Result<(), StoreError> {
    let (from, root) = (temporary.path(), path.parent().unwrap_or(path));
    let written = fs::create_new(from).and_then(|mut file| {
        fs::write_all(&mut file, text.as_bytes())?;
        fs::sync_all(&file)
    });
    written.at("write", from)?;
    fs::rename(from, path).at("rename", path)?;
    sync_folder(root).at("sync", root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;
    use crate::store::Store;

    #[test]
    fn the_text_of_a_format_reads_back_and_a_later_one_may_say_more() {
        let format = FolderFormat { number: 1, version: "0.1.0".to_owned() };
        assert_eq!(FolderFormat::parse(&format.to_text()), Some(format));
        let later = "format 7\nwritten by roadstead 3.0.0-beta.1\nneeds something\n";
        assert_eq!(FolderFormat::parse(later), Some(FolderFormat { number: 7, version: "3.0.0-beta.1".to_owned() }));
        assert_eq!(FolderFormat::parse("format 8\n").unwrap().version, "unknown");
        for text in ["", "format", "format 1", "format x\n", "1\n"] {
            assert_eq!(FolderFormat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_newer_folder_is_refused_with_its_version_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("repositories")).unwrap();
        let text = "format 2\nwritten by roadstead 9.1.0\n";
        std::fs::write(folder.path().join("format"), text).unwrap();
        let refusals = [
            Store::open(folder.path()).unwrap_err().to_string(),
            Store::open_read_only(folder.path(), Events::default()).unwrap_err().to_string(),
        ];
        for refusal in refusals {
            assert!(refusal.contains("format 2") && refusal.contains("roadstead 9.1.0"), "{refusal}");
        }
        assert!(!folder.path().join("blobs").exists() && !folder.path().join("spool").exists());
        assert_eq!(std::fs::read_to_string(folder.path().join("format")).unwrap(), text);
    }

    #[test]
    fn a_folder_without_a_number_gets_one_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("format");
        drop(Store::open(folder.path()).unwrap());
        std::fs::remove_file(&path).unwrap();
        drop(Store::open(folder.path()).unwrap());
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.starts_with("format 1\nwritten by roadstead "), "{written}");
        let older = "format 1\nwritten by roadstead 0.0.9\n";
        std::fs::write(&path, older).unwrap();
        drop(Store::open(folder.path()).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), older);
        std::fs::write(&path, "something").unwrap();
        assert!(Store::open(folder.path()).unwrap_err().to_string().contains("format"));
    }
}
