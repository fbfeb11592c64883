"""Commands of a developer's day, and spellings that hide `git push` and `rm v`. `⏎` is the end of a line."""

from __future__ import annotations

_ORDINARY = r"""
ls -la
cd src && ls
pwd
mkdir -p build/x
cp -r a b
mv a.txt b.txt
cat README.md
head -n 20 file | tail -5
grep -rn 'git push' docs
rg 'rm -rf' --type sh
grep -c rm Makefile
find . -name '*.py' -type f
find $dir -name x
find . -name '*.pyc' -delete
find . -type f -exec wc -l {} +
find . -name '*.js' -print0 | xargs -0 grep -l foo
sed -i 's/git push/git pull/' notes.md
sed -n '1,20p' file
sed -e 's/rm foo/rm bar/g' -e '/x/d' file
sed 's/name/value/;s/a/the/' f
awk '/git push/ {print $2}' log
awk -F: '{ sum += $3 } END { print sum }' f
sort file | uniq -c | sort -rn
cut -d, -f1 data.csv
tr a-z A-Z < f
wc -l src/*.py
diff -u a b
tar czf out.tgz src
unzip -l x.zip
curl -s https://example.com/x.json | jq '.a[] | .b'
curl -X POST -d '{"text": "git push"}' https://example.com
ps aux | grep python
kill -9 123
chmod +x run.sh
./run.sh --fast
make
make -j4 test
make test 2>&1 | tee log
cmake -S . -B build && cmake --build build
gcc -O2 -Wall -o x x.c
go build ./...
go test ./... -run TestX
cargo build --release
cargo test -- --nocapture
npm ci
npm run build
npm test -- --watch=false
npm rm left-pad
npx tsc --noEmit
yarn install --frozen-lockfile
pnpm rm x
node -e 'console.log(1)'
pip install -r requirements.txt
pip install -e '.[dev]'
python -m pytest -x tests/a.py
pytest -k 'not slow and fast' -q
python - <<'E'⏎import os⏎print("rm x")⏎E
python3 -c 'print(1 + 1)'
python manage.py migrate
uv run pytest
ruff check --fix . && ruff format .
mypy src
pre-commit run --all-files
git status
git add -A && git commit -m 'stop using git push'
git commit -am "rm old files"
git commit -F - <<'E'⏎git push is mended⏎E
git commit -m "$(cat <<'E'⏎git push `x` it's⏎E⏎)"
git log --oneline -5
git log --grep='git push' --format='%h %s'
git -C sub status
git diff --stat HEAD~1
git diff -- src/push.py
git checkout -b push
git switch main
git stash push -m 'rm x'
git stash pop
git pull --rebase
git fetch origin
git merge --no-ff feature
git rebase main
git rebase -i HEAD~3
git rm --cached x
git remote rm old
git remote -v
git tag -a v1 -m 'git push tags'
git branch -D push
git show HEAD:push.txt
git grep -n 'rm x'
git blame f
git worktree add ../x
git submodule update --init
git config user.name 'A B'
GIT_PAGER=cat git log -1
GIT_AUTHOR_NAME='A B' git commit -m x
gh pr create --title 'git push' --body 'rm x; y'
docker build -t x .
docker run --rm -it -v "$PWD:/w" img make test
docker rm -f c
docker compose up -d
docker compose rm -f web
docker exec -it c bash
docker image rm x
docker run --rm -e ENV=prod img
kubectl get pods -n x
terraform plan
sudo apt-get install -y git curl
apt list --installed
brew install git
systemctl status x
export PATH="$HOME/bin:$PATH"
export NODE_ENV=test
ENV=prod npm start
FOO=bar BAZ='a b' make
for f in *.py; do echo "$f"; done
for i in $(seq 1 5); do curl -s localhost; done
for c in git npm node; do command -v $c; done
while IFS= read -r l; do echo "$l"; done < f
while read -r a b; do echo "$a"; done < <(ls)
IFS=, read -ra parts <<< "$x"
until curl -sf http://127.0.0.1/; do sleep 1; done
if [ -f x ]; then cat x; else echo no; fi
if [[ $x == rm ]]; then echo y; fi
[[ "$a" == x || "$b" == y ]] && echo z
[[ $x =~ ^(a|b)$ ]] && echo y
[ "$cmd" = rm ] && echo y
case "$1" in rm) echo a;; push) echo b;; esac
f() { echo "$1"; }; f x
x=$(git rev-parse HEAD); echo "$x"
n=$((n + 1))
((i++))
arr=(a b c); echo "${arr[@]}"
mapfile -t lines < f
readarray -t lines < f
hash -r
bash -n s.sh
crontab -l
set -euo pipefail
cat > f <<'E'⏎rm v⏎git push⏎E
cat <<E⏎use \`x\` and "$y"⏎E
cat <<-E > f⏎	text⏎	E
printf '%s\n' rm v
echo "git push" >> notes
echo $'a\tb'
echo {a,b}.txt
ls [a-c]*.py
tail -f log | grep --line-buffered ERR
time make
timeout 60 npm test
nohup ./server > log 2>&1 &
xargs -n1 echo < f
ls | xargs -I{} echo {}
env | sort
env FOO=1 make
which git rm
type rm
command -v git
man rm
man git push
du -sh * | sort -h
date +%F
ssh-keygen -t ed25519 -f key
rsync -av a/ b/
psql -c 'select 1'
sqlite3 x.db 'select * from t'
openssl rand -hex 8
test -d x || mkdir x
true && false
tree -L 2
touch a b
trap 'echo bye' EXIT
wait
VERSION="${VERSION:-$(git describe)}"
echo "${VERSION:-$(git describe --tags)}"
echo "${x%%*.}" "${x##*/}"
for f in *.tar; do mv "$f" "${f%.tar}.bak"; done
echo "${x:-`git describe`}"
echo "${x/a/b}" "${x:-'y'}" "${x:-"z"}"
echo $"git push"
awk '{print $1}' f
awk '/rm x/ || /git push/ { print }' f
echo 'rm x' | awk '{print $2}'
sed -e 's/rm /x/' f
echo 'git push' | sed 's/push/pull/'
git log | sed -n '/git push/p'
git commit -m 'Say when to use `git push` and `rm x`'
git commit -F - <<'E'⏎Use `git push` and $(rm x)⏎E
cat > README.md <<'E'⏎`rm x` and `git push`⏎E
git commit -m "Use \`git push\`"
echo 'use `git push`'
grep -c '$(rm x)' f
python3 script.py | grep 'rm x'
node -e 'console.log(`${1}`)'
perl -ne 'print if /foo/' f
perl -pi -e 's/foo/bar/' f
jq '.[] | select(.a > (1 + 2))' f
[ "$(git rev-parse HEAD)" = "$x" ]
make X="$(nproc)" Y='$(Z)'
psql -c 'select * from t where a > (1)'
"""

_HIDDEN = r"""
echo `echo \`git push\` `
echo `echo \`echo \\\`rm v\\\` \` `
echo "`echo \"\`rm v\`\"`"
echo $'\'; git push #'
x=$'\'; rm v #'
[[ x || rm == v ]]
[[ x || git push ]]
((rm))
echo v | xargs -rI{} sh -c "rm {}"
echo 'rm v' | xargs -rI{} sh -c "{}"
echo 'rm v' | xargs -0I{} sh -c "{}"
echo 'rm v' | xargs --repl={} sh -c "{}"
echo 'rm v' | xargs --replace=% sh -c "%"
echo 'rm v' | xargs -I % sh -c '%'
echo 'rm v' | xargs -tI% -- sh -c %
echo 'rm v' | xargs -i sh -c '{}'
touch push; git pus[h]
touch push; git [p]ush
touch push; git pu??
touch push; git p*h
touch push; git [!a]ush
git {push,}
git pu{sh,}
bin/r[m] v
b*/r? v
env --split='rm v'
env --s='git push'
env --split-string='git push'
env -iS "$PWD/bin/rm v"
env -vS 'rm v'
GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=alias.x GIT_CONFIG_VALUE_0='!rm v' realgit x
env GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=alias.x GIT_CONFIG_VALUE_0='!rm v' realgit x
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=alias.x GIT_CONFIG_VALUE_0='!rm v'; realgit x
GIT_CONFIG_PARAMETERS="'alias.x=!rm v'" realgit x
realgit -c alias.x='!rm v' x
realgit -c core.editor='rm v' config --global -e
GIT_EDITOR='rm v' realgit config --global -e
realgit config --global alias.y '!rm v'; realgit y
git --attr-source HEAD push
git --attr-source=HEAD push
git --unheard-of x push
git --no-pager -P push
env BASH_ENV=startup bash -c :
BASH_ENV=startup bash -c :
export BASH_ENV=startup; bash -c :
ENV=./startup sh -i
choom -n 0 -- git push
choom -n 0 git push
choom -n 0 -- sh -c 'rm v'
choom -n 0 -- env -S 'git push'
choom -n 0 -- nice -n 1 choom -n 0 rm v
start-stop-daemon -S -x "$PWD/bin/git" -- push
start-stop-daemon -S -x"$PWD/bin/git" -- push
start-stop-daemon --start --exec "$PWD/bin/git" -- push
start-stop-daemon --start --exec="$PWD/bin/git" -- push
git-push
./bin/git-push origin
i386 git push
linux64 rm v
setarch x86_64 rm v
setarch -R git push
setpriv --no-new-privs rm v
prlimit --nofile=100 rm v
taskset 1 rm v
chrt -o 0 rm v
ionice -c3 git push
script -qc 'rm v' /dev/null
setsid -w rm v
stdbuf -o0 git push
flock l -c 'rm v'
flock l rm v
faked() { "$@"; }; faked git push
run() { $1 $2; }; run git push
set -- rm v; "$@"
x='rm v'; $x
x=rm; $x v
x=rm; choom -n 0 $x v
x=git; y=push; choom -n 0 $x $y
a=(git push); choom -n 0 "${a[@]}"
for x in rm; do choom -n 0 $x v; done
x='-exec rm v ;'; find . -maxdepth 0 $x
find . -maxdepth 0 -exec choom -n 0 rm v \;
find . -maxdepth 0 -exec sh -c 'git push' \;
awk 'BEGIN { system("rm v") }'
sed -n '1e rm v' startup
echo x | sed 's/x/rm v/e'
mapfile -C 'rm v' -c 1 a < startup
readarray -c1 -C 'git push' a < startup
tar cf /dev/null --checkpoint=1 --checkpoint-action=exec='rm v' startup
tar cf x.tar startup; tar xf x.tar --to-command='rm v'
bash -c 'rm v'
bash -c -- 'git push'
bash -xec 'rm v'
sh -c 'sh -c "git push"'
sh -c '$0 v' rm
sh -c '"$@"' x git push
bash <<< 'choom -n 0 rm v'
choom -n 0 bash <<< 'rm v'
choom -n 0 sh <<E⏎rm v⏎E
eval "choom -n 0 rm v"
trap 'choom -n 0 git push' EXIT
printf -v x 'rm v'; choom -n 0 $x
read -r x <<< 'rm v'; $x
hash -p "$PWD/bin/rm" q; q v
alias q='rm v'⏎q
shopt -s expand_aliases; alias q='rm v'⏎eval q
exec -a x rm v
command -p -- env rm v
coproc rm v; wait
coproc X { rm v; }; wait
! ! rm v
time -p rm v
{ { rm v; }; }
if ! rm v; then :; fi
case x in *) choom -n 0 rm v;; esac
: "${x:=$(rm v)}"
: $((1 + $(rm v; echo 1)))
cat <<E⏎$(choom -n 0 rm v)⏎E
r\m v
r""m v
'r'm v
$'\162\155' v
$"rm" v
>o rm v
3>&1 rm v 2>&1
2>&1 rm v
>|o git push
git	push
git \⏎push
git 'push'
git pu"sh"
git -c a.b=c -C . push
git --git-dir . push
git --git-dir=. -p push
X=1 Y=2 git push
! choom -n 0 git push
true && git >o push
true | git >o push
! git >o push
true && ! git >o push
true || : && git <<E push⏎x⏎E
(choom -n 0 rm v)
tar cf /dev/null --checkpoint=1 --checkpoint-action=exec='git push' startup
perl -e 'system("rm v")'
perl -e 'exec "git push"'
python3 -c 'import os; os.system("git push")'
ls | choom -n 0 xargs rm
choom -n 0 -- find . -maxdepth 0 -exec rm v \;
choom -n 0 "$PWD/bin/rm" v
choom -n 0 ./bin/git push
choom -n 0 -- bash -c "git push"
choom -n 0 $'rm' v
choom -n 0 'r'"m" v
choom -n 0 bin/r[m] v
touch push; choom -n 0 git pus[h]
choom -n 0 git "$(echo push)"
choom -n 0 time rm v
choom -n 0 -- setsid -w env X=1 git -C . push
setarch x86_64 choom -n 0 i386 rm v
( choom -n 0 rm v ) & wait
x=$(choom -n 0 rm v)
echo "$(choom -n 0 git push)"
f() { choom -n 0 rm "$1"; }; f v
if true; then choom -n 0 git push; fi
echo "`choom -n 0 git push`"
cat < <(choom -n 0 rm v)
EDITOR='rm v'; $EDITOR
GIT_SSH_VARIANT=ssh GIT_SSH_COMMAND='rm v;' realgit ls-remote ssh://x/y
realgit -c core.sshCommand='rm v' ls-remote ssh://x/y
realgit ls-remote --upload-pack='rm v;' .
ls --color=never; choom -n 0 -- rm -f -- v
timeout --sig=KILL 5 rm v
timeout -k 1 5 choom -n 0 git push
nice --adj=5 rm v
env --unset=X rm v
env --unse X rm v
env --chd . git push
sh -ec 'git push'
sh -c 'git push' x y
sh +e -c 'rm v'
bash --norc -c 'rm v'
bash -O extglob -c 'rm v'
echo ${x:-`rm v`}
echo ${x-`rm v`}
echo ${x:=`rm v`}
x=y; echo ${x:+`rm v`}
echo ${x:?`rm v`}
echo "${x:-`rm v`}"
echo "${x:-${y:-`git push`}}"
y=${x:-`rm v`}
for i in ${x:-`rm v`}; do :; done
[ "${x:-`rm v`}" ]
echo > ${x:-`rm v; echo o`}
echo $((${x:-`rm v; echo 1`}))
sh -c 'echo ${x:-`rm v`}'
eval 'echo ${x:-`rm v`}'
trap 'echo ${x:-`rm v`}' EXIT
git commit -m "${MSG:-`git push`}"
VERSION="${VERSION:-`git push`}" make
echo ${x:-`r\m v`}
echo "${x:-`echo \`rm v\``}"
x=y; echo ${x%%$(rm v)}
x=y; echo "${x#$(rm v)}"
x=y; echo ${x#a$(rm v)}
x=y; echo ${x#${y:-$(rm v)}}
x=y; echo ${x%$(echo ')'; rm v)}
x=y; echo ${x^$(rm v)}
x=y; echo ${x^^$(rm v)}
x=y; echo ${x,$(rm v)}
x=y; echo ${x,,$(rm v)}
x=y; echo ${x/`rm v`/z}
x=y; echo ${x/#`rm v`/z}
x=y; echo ${x/%`rm v`/z}
x=y; echo ${x//y/`rm v`}
echo "${x:-'$(rm v)'}"
cat <<E⏎${x:-'$(rm v)'}⏎E
x=y; cat <<E⏎${x#$(rm v)}⏎E
r$""m v
rm$"" v
g$"it" push
"g"$"it" push
git pu$""sh
r'm'$"" v
[[ -v 'a[$(rm v)]' ]]
[ -v 'a[$(rm v)]' ]
[[ 'a[$(rm v)]' -eq 0 ]]
a['$(rm v)']=1
a=(['$(rm v)']=1)
echo ${a['$(rm v)']}
(( 'a[$(rm v)]' ))
echo $(('a[$(rm v)]'))
a['`git push`']=1
f() { (( $1 )); }; f 'a[$(rm v)]'
echo() { (( $1 )); }; echo 'a[$(rm v)]'
echo 'rm v' | sed e
awk 'BEGIN{"rm v" | getline}'
awk 'BEGIN{c="rm v"; system(c)}'
sed -f - startup <<< '1e rm v'
sed 's/.*/&/e' <<< 'rm v'
ed <<< '!rm v'
printf 'git push\n' | sed -n e
cat <<'E' | sed e⏎rm v⏎E
sed e < <(echo rm v)
sed e <(echo rm v)
echo rm v | cat | sed 's/.*/&/e'
echo rm v | awk '{system($0)}'
awk -f - <<< 'BEGIN{system("git push")}'
awk -f /dev/stdin <<'E'⏎BEGIN{system("git push")}⏎E
perl -e 'system("rm","v")'
perl <<'E'⏎my $c = "rm v"; system $c;⏎E
python3 - <<'E'⏎import subprocess⏎subprocess.run(["git", "push"])⏎E
echo 'import os; os.system("rm v")' | python3
echo 'rm v' | env sed e
sh -c 'echo "rm v" | sed e'
cat <<E_X⏎${x:-`rm v`}⏎E_X
bash <<E⏎echo \`rm v\`⏎E
echo "${x:-'$(c=rm; $c v)'}"
[[ -v 'a[$(c=rm; $c v)]' ]]
echo 'a[$(rm v)]' | { read -r x; ((x)); }
x=$(echo 'a[$(rm v)]'); ((x))
read -r x <<< 'a[$(rm v)]'; ((x))
"""


def _lines(table: str) -> list[str]:
    return [line.replace("⏎", "\n") for line in table.strip("\n").split("\n")]


ORDINARY = _lines(_ORDINARY)
HIDDEN = _lines(_HIDDEN)
"""Each runs `git push` or `rm` in bash or dash; `bin` has `git`, `rm` and `git-push`, a real git is `realgit`."""
