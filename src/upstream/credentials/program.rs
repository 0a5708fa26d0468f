//! Running a program for what it prints: without a shell, with a time limit, in a process group of its own, so that
//! whatever it has started ends with it.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Below the time within which clients want an answer.
const TIME_LIMIT: Duration = Duration::from_secs(15);
const MOST_OUTPUT: u64 = 64 << 10;

/// How it ended, and its standard output. The standard error stream is not read: it may repeat secrets.
pub(super) struct Output {
    pub(super) success: bool,
    pub(super) status: String,
    pub(super) bytes: Vec<u8>,
}

/// Ends the whole group unless its leader has been waited for: until then nobody else can have its number.
struct Group(Option<Pid>);

pub(super) async fn run(command: &[String], input: &str) -> Result<Output, String> {
    run_within(command, input, TIME_LIMIT).await
}

/// # Errors
/// What is wrong, following the name of the program.
pub(super) async fn run_within(command: &[String], input: &str, limit: Duration) -> Result<Output, String> {
    let (program, arguments) = command.split_first().ok_or("is not named")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    match timeout(limit, talk(&mut child, input)).await {
        Ok(Ok(output)) => {
            group.0 = None;
            Ok(output)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(format!("did not end within {} s", limit.as_secs_f64())),
    }
}

async fn talk(child: &mut Child, input: &str) -> Result<Output, String> {
    if let Some(mut stdin) = child.stdin.take() {
        // Whoever does not read it does not need it.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(MOST_OUTPUT + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| format!("cannot be read: {error}"))?;
    }
    if bytes.len() as u64 > MOST_OUTPUT {
        return Err("prints too much".to_owned());
    }
    let status = child.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
    Ok(Output { success: status.success(), status: status.to_string(), bytes })
}

// === impl Group ===

impl Drop for Group {
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
    async fn a_program_gets_its_input_and_its_output_is_read() {
        let output = run(&shell("read line; echo \"got $line\"; echo noise >&2"), "this").await.unwrap();
        assert!(output.success);
        assert_eq!(output.bytes, b"got this\n");
        let failed = run(&shell("exit 3"), "").await.unwrap();
        assert!(!failed.success && failed.status.contains('3'));
        // One that reads nothing is no trouble, and one argument is one argument.
        let long = "x".repeat(1 << 20);
        assert_eq!(run(&["/bin/echo".to_owned(), "$HOME; a".to_owned()], &long).await.unwrap().bytes, b"$HOME; a\n");
    }

    #[tokio::test]
    async fn what_cannot_be_run_or_prints_without_end_is_an_error() {
        assert!(run(&["/nonexistent".to_owned()], "").await.is_err_and(|error| error.contains("cannot be started")));
        assert_eq!(run(&shell("yes"), "").await.err().unwrap(), "prints too much");
        assert!(run(&[], "").await.is_err());
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}.new; mv {0}.new {0}; wait", pid_file.display());
        let ran = tokio::spawn(async move { run_within(&shell(&script), "", Duration::from_secs(1)).await });
        let error = ran.await.unwrap().err().unwrap();
        assert_eq!(error, "did not end within 1 s");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        // Gone, or dead and not yet taken in by init.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
