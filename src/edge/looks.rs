//! Looks at who holds a socket, one at a time: who makes us look again and again takes no more than one thread by it.

use tokio::sync::{mpsc, oneshot};

use super::peer::{Holder, Holders};

/// Looks that wait for their turn; more wait to be put there.
const WAITING: usize = 64;

/// To ask the one who looks.
#[derive(Debug, Clone)]
pub struct Looks(mpsc::Sender<Look>);

/// One question.
#[derive(Debug)]
pub struct Look {
    uid: u32,
    inode: u64,
    answer: oneshot::Sender<Holder>,
}

impl Default for Looks {
    /// Nobody looks, so nobody is seen.
    fn default() -> Self {
        Self::new().0
    }
}

impl Looks {
    /// With the questions, for [`answer`].
    pub fn new() -> (Self, mpsc::Receiver<Look>) {
        let (ask, asked) = mpsc::channel(WAITING);
        (Self(ask), asked)
    }

    /// Who holds this user's socket with this inode. Where nobody looks, nobody is seen.
    pub async fn at(&self, uid: u32, inode: u64) -> Holder {
        let (answer, holder) = oneshot::channel();
        let look = Look { uid, inode, answer };
        match self.0.send(look).await {
            Ok(()) => holder.await.unwrap_or(Holder::Unseen),
            Err(_) => Holder::Unseen,
        }
    }
}

/// Looks, for as long as somebody asks, and remembers who held the last ones.
pub async fn answer(mut asked: mpsc::Receiver<Look>) {
    let mut holders = Holders::default();
    while let Some(look) = asked.recv().await {
        // Who has gone meanwhile costs nothing.
        if !look.answer.is_closed() {
            let _ = look.answer.send(holders.look(look.uid, look.inode));
            // Whoever else waits for this thread comes in between.
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_nobody_looks_nobody_is_seen() {
        assert_eq!(Looks::default().at(0, 1).await, Holder::Unseen);
        let (looks, asked) = Looks::new();
        let waits = tokio::spawn(async move { looks.at(0, 1).await });
        tokio::task::yield_now().await;
        drop(asked);
        assert_eq!(waits.await.unwrap(), Holder::Unseen);
    }

    #[tokio::test]
    async fn a_socket_of_this_process_is_held_outside() {
        let (looks, asked) = Looks::new();
        let _looker = tokio::spawn(answer(asked));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
        let uid = rustix::process::getuid().as_raw();
        let own = i32::try_from(std::process::id()).unwrap();
        for _ in 0..2 {
            assert_eq!(looks.at(uid, inode).await, Holder::Outside(own));
        }
    }
}
