import os, traceback
from collections import Counter
from unit.world import *
N0=int(os.environ.get("N0","0")); N=int(os.environ.get("N","50")); MODE=os.environ.get("MODE","all")
F={
 "none":Faults(),
 "net":Faults(lose=.05,repeat=.05,delay=.05),
 "lose":Faults(lose=.05),
 "store":Faults(break_store=.1),
 "forget":Faults(break_store=.1,forget_store=.5),
 "death":Faults(crash_slot=.02,kill_worker=.1,stop_worker=.1,freeze_worker=.1,kill_router=.15),
 "all":Faults(.03,.03,.03,.03,0,.02,.05,.05,.05,.08),
 "allf":Faults(.03,.03,.03,.03,.3,.02,.05,.05,.05,.08),
}
def play(seed, faults):
    w=World(seed,faults)
    r=w.rng
    for _ in range(r.randint(1,3)): w.add_worker(r.randint(1,3), r.choice((0,0,4)), r.choice((("default",),("default",),("fast","default"))))
    w.add_worker(1,0,("fast","default"))
    for _ in range(2): w.add_client(r.choice((5,1000)))
    def burst():
        for _ in range(r.randint(1,30)):
            c=r.choice(w.clients); k=r.random()
            opt={}
            if r.random()<.2: opt["queue"]="fast"
            if r.random()<.2: opt["priority"]=r.randint(0,9)
            if r.random()<.1: opt["delay_s"]=r.uniform(0,3)
            if k<.1: c.submit("flaky",{"fails":r.randint(1,2)},retries=2,backoff_s=r.choice((0,.5)),**opt)
            elif k<.15: c.submit("broken",retries=r.randint(0,1),backoff_s=.1,**opt)
            elif k<.25 and w.deeds: c.follow(r.choice(w.deeds))
            else: c.submit(**opt)
    for i in range(8): w.later(r.uniform(0,8),burst)
    w.run(0.5) if r.random()<.5 else None
    w.trouble(10)
    return w
def test_w():
    bad=Counter(); ex={}
    for seed in range(N0,N0+N):
        try:
            w=play(seed,F[MODE])
            # follow before accept is refused with NotFound
            w.run(90,w.settled)
            w.run(40)
            w.deeds=[d for d in w.deeds if not(d.handle.cmd=="" and type(d.handle.exception()).__name__=="NotFound")]
            check_end(w)
        except Exception as e:
            k=traceback.format_exc().splitlines()
            s=k[-1] if len(k[-1])>20 else k[-2]
            key=type(e).__name__+":"+[x for x in k if "File" in x][-1][-40:]+":"+str(e)[:70]
            bad[key]+=1; ex.setdefault(key,[]).append(seed)
    for k,v in bad.items(): print(v,k,ex[k][:5])
    assert not bad
