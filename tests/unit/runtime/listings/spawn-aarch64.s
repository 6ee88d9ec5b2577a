mov x10, x2
mov x11, x3
mov x8, #435
svc #0
cbnz x0, parent
loop:
ldr x8,[x10]
ldp x0,x1,[x10,#8]
ldp x2,x3,[x10,#24]
ldp x4,x5,[x10,#40]
tbnz x8,#63,check
svc #0
str x0,[x10,#72]
cmp x8,#435
b.ne expected
cmp x0,#0
b.le expected
ldr x10,[x10,#48]
b loop
expected:
ldrsw x9,[x10,#60]
cbz x9,plain
cmp x0,x9
b.eq next
b failed
plain:
cmn x0,#4095
b.cs error
ldr x9,[x10,#64]
cbz x9,pass
store:
ldr x12,[x9],#8
cbz x12,pass
str x0,[x12]
b store
pass:
ldr x9,[x10,#56]
tbz x9,#1,next
str x0,[x10,#88]
next:
add x10,x10,#80
b loop
error:
ldr x9,[x10,#56]
tbnz x9,#0,next
failed:
str x10,[x11]
mov x0,#127
mov x8,#94
svc #0
check:
ldr x0,[x0]
and x0,x0,x1
cmp x0,x2
cset x0,eq
cmp x0,x3
b.eq failed
b next
parent:
ret
