//! A store that is only read: a folder that nobody may change, such as a snapshot or a mount without write access.
//!
//! Nothing below the folder is written, not even a lock: several may read it at once, beside no writer. There is no index:
//! lists come from the folders. What would be written is refused with [`StoreError::ReadOnly`].

use std::path::Path;

use uuid::Uuid;

use super::error::{At, StoreError, optional};
use super::layout::Layout;
use super::lock::FolderLock;
use super::{Bounds, Inner, OpenError, Parts, Store};

impl Store {
    /// Opens a data folder to read it. Blocks.
    ///
    /// # Errors
    /// When a process that writes holds it, or when it is no data folder.
    pub fn open_read_only(root: &Path) -> Result<Self, OpenError> {
        let layout = Layout::new(root);
        let lock = FolderLock::take_shared(&layout.lock())?;
        let path = layout.id();
        let id = optional(std::fs::read_to_string(&path)).at("read", &path)?;
        // Without one it is the id of this process alone, which is enough to find a loop by.
        let instance = id.and_then(|id| Uuid::parse_str(id.trim()).ok()).unwrap_or_else(Uuid::new_v4);
        let path = layout.repositories();
        std::fs::read_dir(&path).at("read", &path)?;
        Self::assemble(Parts {
            layout,
            instance,
            bounds: Bounds::NONE,
            pins: None,
            // Whether a file says itself that it is pushed is found out by writing: the links say so, too.
            keeps_modes: false,
            lock,
            read_only: true,
        })
    }

    /// Whether nothing is written to the folder.
    pub fn is_read_only(&self) -> bool {
        self.inner.read_only
    }
}

impl Inner {
    /// First of all in whatever writes.
    pub(super) fn check_writes(&self) -> Result<(), StoreError> {
        if self.read_only { Err(StoreError::ReadOnly) } else { Ok(()) }
    }
}
