//! An output in memory for the tests of logs. Clones write to the same bytes.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;

#[derive(Clone, Default)]
pub(super) struct SharedOutput(pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
