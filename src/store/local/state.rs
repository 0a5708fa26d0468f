//! `state/`: files that must survive a restart and are no index of anything.

use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};

use super::Local;
use super::layout::{Temporary, sync_folder};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;

/// Random bytes of the secret. The file has two characters for each.
const SECRET_BYTES: usize = 32;

impl Local {
    /// The secret that signs tokens. It is made once, and kept in a file that only the owner of the folder can read. A
    /// folder that is not written gives a secret for this process alone if it has none. Blocks.
    pub(in crate::store) fn token_secret(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.layout.token_secret();
        let text = optional(fs::read(&path)).at("read", &path)?;
        if let Some(secret) = text.as_deref().map(<[u8]>::trim_ascii).filter(|secret| secret.len() >= SECRET_BYTES) {
            return Ok(secret.to_vec());
        }
        let secret = random_text().at("read random numbers for", &path)?;
        if self.is_read_only() {
            return Ok(secret.into_bytes());
        }
        let temporary = Temporary::new(self.layout.temporary());
        match put(&temporary, &path, secret.as_bytes()) {
            // The next start makes another one, and tokens of this one are not valid then.
            Err(error) if error.is_full() => Ok(secret.into_bytes()),
            written => written.map(|()| secret.into_bytes()),
        }
    }

    /// The text with the machine tokens; `None` if there is none yet. Blocks.
    pub(in crate::store) fn machine_tokens(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.layout.machine_tokens();
        optional(fs::read(&path)).at("read", &path)
    }

    /// Replaces the text with the machine tokens, at once and durably. Only the owner of the folder can read it. Blocks.
    pub(in crate::store) fn put_machine_tokens(&self, text: &[u8]) -> Result<(), StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        put(&Temporary::new(self.layout.temporary()), &self.layout.machine_tokens(), text)
    }
}

fn random_text() -> std::io::Result<String> {
    let mut bytes = [0; SECRET_BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| std::io::Error::other("the kernel gives none"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn put(temporary: &Temporary, path: &Path, text: &[u8]) -> Result<(), StoreError> {
    let (from, folder) = (temporary.path(), path.parent().unwrap_or(path));
    let written = fs::create_new(from).and_then(|mut file| {
        fs::write_all(&mut file, &[text, b"\n"].concat())?;
        fs::sync_all(&file)
    });
    written.at("write", from)?;
    fs::create_dir_all(folder).at("create", folder)?;
    fs::rename(from, path).at("rename", path)?;
    sync_folder(folder).at("sync", folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use crate::events::Events;
    use crate::store::Store;

    #[tokio::test]
    async fn machine_tokens_are_replaced_and_only_their_owner_can_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/machine-tokens.json");
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.machine_tokens().unwrap(), None);
        for text in ["one", "two"] {
            store.put_machine_tokens(text.as_bytes()).unwrap();
            assert_eq!(store.machine_tokens().unwrap().unwrap().trim_ascii(), text.as_bytes());
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        }
        store.close().await;
        drop(store);
        let store = Store::open_read_only(folder.path(), Events::default()).unwrap();
        assert!(matches!(store.put_machine_tokens(b"three"), Err(crate::store::StoreError::ReadOnly)));
        assert_eq!(store.machine_tokens().unwrap().unwrap(), b"two\n");
    }

    #[tokio::test]
    async fn a_secret_is_made_once_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/token-secret");
        let store = Store::open(folder.path()).unwrap();
        assert!(!file.exists(), "it is made when it is needed");
        let secret = store.token_secret().unwrap();
        assert_eq!((secret.len(), store.token_secret().unwrap()), (64, secret.clone()));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o700);
        store.close().await;
        drop(store);
        let store = Store::open_read_only(folder.path(), Events::default()).unwrap();
        assert_eq!(store.token_secret().unwrap(), secret);
        std::fs::write(&file, "short").unwrap();
        assert_ne!(store.token_secret().unwrap(), store.token_secret().unwrap(), "for this process alone");
        assert_eq!(std::fs::read(&file).unwrap(), b"short");
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        let other = store.token_secret().unwrap();
        assert!(other != secret && other == store.token_secret().unwrap());
    }
}
