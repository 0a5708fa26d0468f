//! The mode of a content file says its class: pushed content has no write permission.
//!
//! So the class survives without the index. A copy of the data folder or a changed mount can lose modes; the links of local
//! repositories are asked as well before anything is evicted.

use std::io;
use std::os::unix::fs::PermissionsExt;

use crate::store::fs::{self, File, Metadata, Permissions};

const OWNER_WRITE: u32 = 0o200;
/// The mode of pushed content. The missing write permission of the owner marks it as pushed.
const PUSHED_MODE: u32 = 0o400;

/// Marks a file as pushed content.
pub(in crate::store) fn mark_pushed(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    if mode & OWNER_WRITE == 0 {
        return Ok(());
    }
    fs::set_permissions(file, Permissions::from_mode(PUSHED_MODE))
}

/// Gives the owner the write permission back, for a file that is not finished yet.
pub(super) fn unmark_pushed(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.permissions().mode();
    if mode & OWNER_WRITE != 0 {
        return Ok(());
    }
    fs::set_permissions(file, Permissions::from_mode(mode | OWNER_WRITE))
}

pub(in crate::store) fn is_marked_pushed(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & OWNER_WRITE == 0
}
