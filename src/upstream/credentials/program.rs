//! Runs a program and reads its output: without a shell, with a time limit, and in its own process group, so that its
//! child processes end with it.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Time limit of a program, less than the default of `answer_within`.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest accepted output.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;

/// The result of a program. Its standard error stream is not read, as it may repeat secrets.
pub(super) struct ProgramOutput {
    pub(super) success: bool,
    pub(super) status: String,
    pub(super) bytes: Vec<u8>,
}

/// Kills the process group on drop, unless its leader was waited for. Until then its number cannot be reused.
struct ProcessGroup(Option<Pid>);

/// Runs `command` with `input` as its standard input.
///
/// # Errors
/// The reason, as a predicate that follows the program's name.
pub(super) async fn run(command: &[String], input: &str) -> Result<ProgramOutput, String> {
    run_within(command, input, PROGRAM_TIMEOUT).await
}

/// The same with another time limit.
pub(super) async fn run_within(command: &[String], input: &str, limit: Duration) -> Result<ProgramOutput, String> {
    let (program, arguments) = command.split_first().ok_or("has no name")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let mut group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    match timeout(limit, talk(&mut child, input)).await {
        Ok(Ok(output)) => {
            group.0 = None;
            Ok(output)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(format!("did not end within {} s", limit.as_secs_f64())),
    }
}

async fn talk(child: &mut Child, input: &str) -> Result<ProgramOutput, String> {
    if let Some(mut stdin) = child.stdin.take() {
        // A program may ignore its input.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(MAX_OUTPUT_BYTES + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| format!("cannot be read: {error}"))?;
    }
    if bytes.len() as u64 > MAX_OUTPUT_BYTES {
        return Err("prints more than 64 KiB".to_owned());
    }
    let status = child.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
    Ok(ProgramOutput { success: status.success(), status: status.to_string(), bytes })
}

// === impl ProcessGroup ===

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str) -> [String; 3] {
        ["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]
    }

    #[tokio::test]
    async fn input_is_written_and_output_is_read() {
        let output = run(&shell("read line; echo \"got $line\"; echo noise >&2"), "this").await.unwrap();
        assert!(output.success);
        assert_eq!(output.bytes, b"got this\n");
        let failed = run(&shell("exit 3"), "").await.unwrap();
        assert!(!failed.success && failed.status.contains('3'));
        // A program may ignore its input, and one argument stays one argument.
        let long = "x".repeat(1 << 20);
        assert_eq!(run(&["/bin/echo".to_owned(), "$HOME; a".to_owned()], &long).await.unwrap().bytes, b"$HOME; a\n");
    }

    #[tokio::test]
    async fn unusable_programs_are_errors() {
        assert!(run(&["/nonexistent".to_owned()], "").await.is_err_and(|error| error.contains("cannot be started")));
        assert_eq!(run(&shell("yes"), "").await.err().unwrap(), "prints more than 64 KiB");
        assert!(run(&[], "").await.is_err());
    }

    #[tokio::test]
    async fn timeout_kills_the_process_group() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}.new; mv {0}.new {0}; wait", pid_file.display());
        let ran = tokio::spawn(async move { run_within(&shell(&script), "", Duration::from_secs(1)).await });
        let error = ran.await.unwrap().err().unwrap();
        assert_eq!(error, "did not end within 1 s");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        // Gone, or a zombie that init has not reaped yet.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
