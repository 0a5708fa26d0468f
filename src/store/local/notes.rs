//! Notes: one small document for each mirrored repository, with the last answers of its upstream about content that is
//! not stored.
//!
//! The miss engine decides the content of a note. Notes are not durable, and any note may be removed. Without it, fewer
//! requests can be answered in an outage. Their number and size are bounded, and they do not count towards `max_size`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Local;
use super::layout::{Layout, Temporary};
use crate::oci::{Algorithm, Digest, RepoId};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;

/// Maximum size of a note. A longer one is not stored, and is not read.
const MAX_NOTE_BYTES: usize = 1 << 20;
/// Maximum number of notes. The oldest ones are removed.
const MAX_NOTES: usize = 2000;
/// Number of notes that are removed together when there are too many, so that not every new note causes a search.
const NOTES_REMOVED_AT_ONCE: usize = MAX_NOTES / 10;

impl Layout {
    pub(in crate::store) fn notes(&self) -> PathBuf {
        self.root().join("notes")
    }

    /// A repository's name is not used as the name of its file: it may be longer than a file name, and has slashes.
    fn note(&self, repo: &RepoId) -> PathBuf {
        let name = format!("{}/{}", repo.scope.as_str(), repo.name);
        self.notes().join(Digest::of(Algorithm::Sha256, name.as_bytes()).hex())
    }
}

impl Local {
    /// The note of a repository, if there is one.
    pub(in crate::store) fn read_note(&self, repo: &RepoId) -> Result<Option<Vec<u8>>, StoreError> {
        let _locked = self.names().read(repo);
        read(&self.layout().note(repo))
    }

    /// Replaces the note of a repository by what `change` makes of it. `None`: it stays as it is.
    pub(in crate::store) fn change_note(
        &self,
        repo: &RepoId,
        change: impl FnOnce(Option<Vec<u8>>) -> Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.require_writable()?;
        let _locked = self.names().write(repo);
        let path = self.layout().note(repo);
        let old = read(&path)?;
        let is_new = old.is_none();
        let Some(note) = change(old).filter(|note| note.len() <= MAX_NOTE_BYTES) else { return Ok(()) };
        if is_new {
            self.make_room_for_note()?;
        }
        let temporary = Temporary::new(self.layout().temporary());
        let written = self.layout().with_folder(temporary.path(), |path| fs::write(path, &note));
        written.at("write", temporary.path())?;
        self.layout().with_folder(&path, |path| self.layout().replace(temporary.path(), path)).at("rename", &path)
    }

    fn make_room_for_note(&self) -> Result<(), StoreError> {
        let folder = self.layout().notes();
        let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { return Ok(()) };
        let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        if paths.len() < MAX_NOTES {
            return Ok(());
        }
        let changed = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified());
        let mut by_age: Vec<(SystemTime, PathBuf)> =
            paths.into_iter().map(|path| (changed(&path).unwrap_or(SystemTime::UNIX_EPOCH), path)).collect();
        by_age.sort_unstable();
        for (_, path) in by_age.iter().take(NOTES_REMOVED_AT_ONCE) {
            optional(fs::remove_file(path)).at("remove", path)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let is_note = |metadata: fs::Metadata| {
        metadata.is_file() && usize::try_from(metadata.len()).is_ok_and(|n| n <= MAX_NOTE_BYTES)
    };
    if !optional(fs::metadata(path)).at("stat", path)?.is_some_and(is_note) {
        return Ok(None);
    }
    Ok(optional(fs::read_to_string(path)).at("read", path)?.map(String::into_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Scope;
    use crate::store::Store;

    fn repo(name: &str) -> RepoId {
        RepoId::new(Scope::Upstream("docker.io".into()), name.parse().unwrap())
    }

    #[test]
    fn a_note_is_changed_in_place_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let repo = repo("library/busybox");
        {
            let store = Store::open(folder.path()).unwrap();
            store.local().change_note(&repo, |old| old.is_none().then(|| b"one".to_vec())).unwrap();
            store.local().change_note(&repo, |old| Some([old.unwrap(), b"two".to_vec()].concat())).unwrap();
            store.local().change_note(&repo, |_| None).unwrap();
        }
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.local().read_note(&repo).unwrap().unwrap(), b"onetwo");
        assert_eq!(store.local().read_note(&self::repo("library/other")).unwrap(), None);
    }

    #[test]
    fn number_and_size_of_notes_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.local().change_note(&repo("a"), |_| Some(vec![b'x'; MAX_NOTE_BYTES + 1])).unwrap();
        assert_eq!(store.local().read_note(&repo("a")).unwrap(), None);
        for n in 0..MAX_NOTES + 50 {
            store.local().change_note(&repo(&format!("app{n}")), |_| Some(b"x".to_vec())).unwrap();
        }
        let count = std::fs::read_dir(folder.path().join("notes")).unwrap().count();
        assert!((MAX_NOTES - NOTES_REMOVED_AT_ONCE..=MAX_NOTES).contains(&count), "{count}");
        assert!(store.local().read_note(&repo(&format!("app{}", MAX_NOTES + 49))).unwrap().is_some());
    }
}
