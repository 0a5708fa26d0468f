//! Clients that push and pull at random until the server is killed, and check every response against the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use fastrand::Rng;

use super::ledger::{Ledger, Name, Session};
use super::stock::Stock;
use crate::support::push::absolute;
use crate::support::{Answer, Client, Content, Image};

/// The server was killed, as planned.
pub struct ServerKilled;

type Done = Result<(), ServerKilled>;

#[derive(Clone)]
pub struct RandomClient {
    pub base: String,
    pub client: Client,
    pub stock: Arc<Stock>,
    pub ledger: Arc<Ledger>,
    /// Set before the server is killed.
    pub ending: Arc<AtomicBool>,
}

impl RandomClient {
    /// Sends a request and reads the complete response.
    async fn send(&self, method: &str, url: &str, kind: &str, body: Bytes) -> Result<Answer, ServerKilled> {
        let headers = [("Content-Type", kind)];
        match self.client.try_send(method, url, &headers[..usize::from(!kind.is_empty())], body).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                assert!(self.ending.load(Ordering::SeqCst), "{method} {url} while the server is running: {error:?}");
                Err(ServerKilled)
            }
        }
    }

    async fn expect(
        &self,
        status: u16,
        method: &str,
        url: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Answer, ServerKilled> {
        let answer = self.send(method, url, kind, body).await?;
        assert_eq!(answer.status, status, "{method} {url}: {}", answer.text());
        Ok(answer)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Pulls mirrored content.
    pub async fn pull(self, mut rng: Rng) {
        while self.pull_one(&mut rng).await.is_ok() {}
    }

    pub async fn pull_one(&self, rng: &mut Rng) -> Done {
        let (path, content) = self.stock.mirrored(rng);
        let answer = self.expect(200, "GET", &self.url(path), "", Bytes::new()).await?;
        assert!(answer.body == content.bytes, "{path} has other content");
        Ok(())
    }

    /// Pushes, deletes and reads in this client's repositories.
    pub async fn push(self, number: u8, mut rng: Rng) {
        while self.push_one(number, &mut rng).await.is_ok() {}
    }

    async fn push_one(&self, number: u8, rng: &mut Rng) -> Done {
        let repos = [format!("team/w{number}"), format!("team/w{number}/sub")];
        let (repo, other) = if rng.bool() { (&repos[0], &repos[1]) } else { (&repos[1], &repos[0]) };
        let image = self.stock.image(rng);
        let tag = Name::manifest(repo, &format!("t{}", rng.u8(..4)));
        match rng.u8(..10) {
            0..5 => self.push_image(repo, other, &tag, image, rng).await,
            5 => self.delete(&tag, std::slice::from_ref(&tag)).await,
            6 => {
                let name = Name::manifest(repo, image.digest());
                let mut gone = self.ledger.tags_of(repo, image.digest());
                gone.push(name.clone());
                self.delete(&name, &gone).await
            }
            7 => {
                let name = Name::blob(repo, &rng.choice(&image.layers).expect("an image has layers").digest);
                self.delete(&name, std::slice::from_ref(&name)).await
            }
            8 => {
                let mut session = self.open(repo, rng.choice(&image.layers).expect("an image has layers")).await?;
                let part = rng.usize(2..session.content.bytes.len());
                self.send_until(&mut session, part).await
            }
            _ => {
                let name = rng.choice(self.ledger.names()).filter(|name| name.repo == *repo);
                self.read(&name.unwrap_or(tag)).await
            }
        }
    }

    /// Reads a name and compares it with the last acknowledged state.
    async fn read(&self, name: &Name) -> Done {
        let answer = self.send("GET", &self.url(&name.path()), "", Bytes::new()).await?;
        match self.ledger.target(name) {
            Some(digest) => {
                let right = answer.status == 200 && answer.body == *self.stock.bytes(&digest);
                assert!(right, "{}: {}", name.path(), answer.status);
            }
            None => assert_eq!(answer.status, 404, "{}", name.path()),
        }
        Ok(())
    }

    async fn push_image(&self, repo: &str, other: &str, tag: &Name, image: &Image, rng: &mut Rng) -> Done {
        for blob in image.blobs() {
            if self.ledger.target(&Name::blob(repo, &blob.digest)).is_none() || rng.u8(..3) == 0 {
                self.push_blob(repo, other, blob, rng).await?;
            }
        }
        let names = [tag.clone(), Name::manifest(repo, image.digest())];
        self.ledger.note_request(&names, Some(image.digest()));
        let manifest = &image.manifest;
        self.expect(201, "PUT", &self.url(&tag.path()), &manifest.media_type, manifest.bytes.clone()).await?;
        self.ledger.note_acknowledged(&names);
        Ok(())
    }

    async fn push_blob(&self, repo: &str, other: &str, blob: &Content, rng: &mut Rng) -> Done {
        let name = [Name::blob(repo, &blob.digest)];
        let uploads = self.url(&format!("/v2/{repo}/blobs/uploads/"));
        match rng.u8(..4) {
            0 => {
                self.ledger.note_request(&name, Some(&blob.digest));
                let url = format!("{uploads}?digest={}", blob.digest);
                self.expect(201, "POST", &url, "application/octet-stream", blob.bytes.clone()).await?;
                self.ledger.note_acknowledged(&name);
                return Ok(());
            }
            1 => {
                self.ledger.note_request(&name, Some(&blob.digest));
                let url = format!("{uploads}?mount={}&from={other}", blob.digest);
                let answer = self.send("POST", &url, "", Bytes::new()).await?;
                assert!(matches!(answer.status, 201 | 202), "{}", answer.text());
                if answer.status == 201 {
                    self.ledger.note_acknowledged(&name);
                    return Ok(());
                }
            }
            _ => {}
        }
        let mut session = self.open(repo, blob).await?;
        while session.sent < blob.bytes.len() && rng.u8(..4) > 0 {
            let until = rng.usize(session.sent + 1..=blob.bytes.len()).max(2);
            self.send_until(&mut session, until).await?;
        }
        self.finish(&mut session).await
    }

    async fn open(&self, repo: &str, content: &Content) -> Result<Session, ServerKilled> {
        let answer =
            self.expect(202, "POST", &self.url(&format!("/v2/{repo}/blobs/uploads/")), "", Bytes::new()).await?;
        let location = absolute(&self.base, answer.header("location"));
        let (repo, content) = (repo.to_owned(), content.clone());
        let session = Session { location, repo, content, confirmed: 0, sent: 0, ending: false };
        self.ledger.keep(&session);
        Ok(session)
    }

    async fn send_until(&self, session: &mut Session, until: usize) -> Done {
        let bytes = session.content.bytes.slice(session.sent..until);
        session.sent = until;
        self.ledger.keep(session);
        let answer = self.expect(202, "PATCH", &session.location, "application/octet-stream", bytes).await?;
        assert_eq!(answer.header("range"), format!("0-{}", until - 1));
        session.confirmed = until;
        self.ledger.keep(session);
        Ok(())
    }

    async fn finish(&self, session: &mut Session) -> Done {
        let name = [Name::blob(&session.repo, &session.content.digest)];
        self.ledger.note_request(&name, Some(&session.content.digest));
        let rest = session.content.bytes.slice(session.sent..);
        session.sent = session.content.bytes.len();
        session.ending = true;
        self.ledger.keep(session);
        let url = format!("{}?digest={}", session.location, session.content.digest);
        self.expect(201, "PUT", &url, "application/octet-stream", rest).await?;
        self.ledger.note_acknowledged(&name);
        self.ledger.forget(session);
        Ok(())
    }

    async fn delete(&self, name: &Name, gone: &[Name]) -> Done {
        let was_there = self.ledger.target(name).is_some();
        self.ledger.note_request(gone, None);
        let answer = self.send("DELETE", &self.url(&name.path()), "", Bytes::new()).await?;
        assert_eq!(answer.status, if was_there { 202 } else { 404 }, "DELETE {}", name.path());
        self.ledger.note_acknowledged(gone);
        Ok(())
    }
}

// === checks after a restart ===

impl RandomClient {
    /// Every acknowledged change holds, and an unacknowledged one holds completely or not at all.
    pub async fn check_names(&self) {
        for name in self.ledger.names() {
            let answer = self.client.get(&self.url(&name.path())).await;
            let found = match answer.status {
                200 => Some(answer.header("docker-content-digest").to_owned()),
                404 => None,
                status => panic!("{}: {status} {}", name.path(), answer.text()),
            };
            self.ledger.check(&name, &found);
            if let Some(digest) = found {
                assert!(answer.body == *self.stock.bytes(&digest), "{} is incomplete", name.path());
            }
        }
    }

    /// Every open session resumes at the offset that the server reports, or has ended as requested. Some are finished.
    pub async fn check_sessions(&self, rng: &mut Rng) {
        for mut session in self.ledger.sessions() {
            let answer = self.client.get(&session.location).await;
            if session.ending && answer.status == 404 {
                self.ledger.forget(&session);
                continue;
            }
            assert_eq!(answer.status, 204, "{}: {}", session.location, answer.text());
            let last: usize = answer.header("range").strip_prefix("0-").expect("a range").parse().expect("a number");
            let there = if last == 0 { 0 } else { last + 1 };
            assert!(
                (session.confirmed..=session.sent).contains(&there),
                "{} of {} confirmed and {} sent bytes are stored",
                there,
                session.confirmed,
                session.sent
            );
            session.sent = there;
            session.confirmed = there;
            self.ledger.keep(&session);
            if session.ending || rng.bool() {
                assert!(self.finish(&mut session).await.is_ok(), "the server is running");
            }
        }
    }
}
