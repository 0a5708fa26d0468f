//! Reading certificates from PEM files.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::file;

/// Reads the certificates in a PEM file, at least one. Blocks.
///
/// # Errors
/// The message for a file that cannot be read or has none.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let content = file::read(path).map_err(|error| error.to_string())?;
    let read = CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
    let certificates: Vec<CertificateDer<'static>> = read.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("contains no certificate".to_owned()) } else { Ok(certificates) }
}
